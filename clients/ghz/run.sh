#!/usr/bin/env bash
# run.sh [PORT]: load-tests the server on 127.0.0.1 with ghz. Reports go to var/load-test/.
# docs/load-testing.md says how to read them.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly VERSION=0.121.0
readonly GHZ=var/bin/ghz-$VERSION/ghz
readonly CONFIGS=clients/ghz
readonly REPORTS=var/load-test
readonly PYTHON=.venv/bin/python
# Nothing but this machine is ever loaded.
readonly ADDRESS=127.0.0.1:${1:-50051}
# The longest that one run may take.
readonly LIMIT_S=180

install_ghz() {
    [[ -x $GHZ ]] && return
    command -v go > /dev/null || { echo "ghz $VERSION is built with Go, which is missing" >&2; exit 1; }
    echo "installing ghz $VERSION"
    GOBIN=$PWD/$(dirname "$GHZ") go install "github.com/bojand/ghz/cmd/ghz@v$VERSION"
}

# load NAME CONFIG [OPTION...]
load() {
    local name=$1 config=$2
    shift 2
    echo "running $name"
    timeout "$LIMIT_S" "$GHZ" --config "$CONFIGS/$config.json" --name "$name" \
        --format json --output "$REPORTS/$name.json" "$@" "$ADDRESS"
}

install_ghz
"$PYTHON" deploy/check_health.py "$ADDRESS" keek.v1.FeedService || {
    echo "no feeds at $ADDRESS: start a server that has a release ('make run') first" >&2
    exit 1
}
mkdir -p "$REPORTS"
rm -f "$REPORTS"/*.json

interactions=$REPORTS/data/interactions.json
"$PYTHON" "$CONFIGS/interactions.py" "$ADDRESS" "$CONFIGS/record_interaction.json" "$interactions"

# Interactions first: they give the users of the feeds a history, whatever data the server has.
load record_interaction record_interaction --data-file "$interactions"
load list_feed list_feed
load stream_feed stream_feed
load list_feed_at_rate list_feed_at_rate
# What a real day is like: reads and writes together, at a rate that does not wait for answers.
load mixed_record_interaction record_interaction --data-file "$interactions" --async --rps 50 --total 500 &
load mixed_list_feed list_feed_at_rate
wait $!

"$PYTHON" "$CONFIGS/summary.py" "$REPORTS" | tee "$REPORTS/summary.txt"
