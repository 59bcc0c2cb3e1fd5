#!/bin/sh
# init-models.sh GIVEN REPOSITORY: puts each model's config.pbtxt into Triton's model repository.
#
# A configuration is immutable: one that differs from what is there is refused, because Triton
# would reload all versions of that model with it. Published versions are left alone.
set -eu

given=$1
repository=$2

for config in "$given"/*/config.pbtxt; do
    folder=$repository/$(basename "$(dirname "$config")")
    if [ ! -e "$folder/config.pbtxt" ]; then
        mkdir -p "$folder"
        # Under its name only when it is complete.
        cp "$config" "$folder/config.pbtxt.tmp"
        mv "$folder/config.pbtxt.tmp" "$folder/config.pbtxt"
        echo "$folder/config.pbtxt: new"
    elif ! cmp -s "$config" "$folder/config.pbtxt"; then
        echo "$folder/config.pbtxt differs from $config, and must not change:" \
             "give the changed model another name, or start with an empty repository" >&2
        exit 1
    fi
done
