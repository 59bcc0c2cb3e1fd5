#!/usr/bin/env bash
# install.sh: builds the pinned ghz with Go, once, and prints where it is.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly VERSION=0.121.0
readonly GHZ=var/bin/ghz-$VERSION/ghz

if [[ ! -x $GHZ ]]; then
    command -v go > /dev/null || { echo "ghz $VERSION is built with Go, which is missing" >&2; exit 1; }
    echo "installing ghz $VERSION" >&2
    GOBIN=$PWD/$(dirname "$GHZ") go install "github.com/bojand/ghz/cmd/ghz@v$VERSION" >&2
fi
echo "$PWD/$GHZ"
