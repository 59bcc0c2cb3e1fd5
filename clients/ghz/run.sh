#!/usr/bin/env bash
# run.sh [PORT]: load-tests the server on 127.0.0.1 with ghz; where none runs at the port, one that it starts
# itself and stops again. Reports go to var/load-test/. docs/load-testing.md says how to read them.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly CONFIGS=clients/ghz
readonly REPORTS=var/load-test
readonly PYTHON=.venv/bin/python
# The longest that one run may take, and that a server may take to come up.
readonly LIMIT_S=180
readonly UP_S=60

# Nothing but this machine is ever loaded.
address=127.0.0.1:${1:-50051}
metrics=${KEEK_METRICS_LISTEN:-}
server=

serves() { "$PYTHON" deploy/check_health.py "$address" keek.v1.FeedService > /dev/null 2>&1; }

free_port() {
    "$PYTHON" -c 'from keek_server.embedded.ports import free_port; print(free_port())'
}

stop_server() {
    [[ -n $server ]] || return 0
    kill "$server" 2> /dev/null || true
    wait "$server" || true
}

start_server() {
    local log=$REPORTS/server.log
    compgen -G "${KEEK_DATA_DIR:-var}/releases/*/manifest.json" > /dev/null || {
        echo "no server serves feeds at $address, and no release is published that one could serve: 'make demo' first" >&2
        exit 1
    }
    address=127.0.0.1:$(free_port)
    metrics=127.0.0.1:$(free_port)
    echo "no server serves feeds there: starting one at $address, its log in $log"
    KEEK_LISTEN=$address KEEK_METRICS_LISTEN=$metrics .venv/bin/keek-server up > "$log" 2>&1 &
    server=$!
    local deadline=$((SECONDS + UP_S))
    until serves; do
        if ! kill -0 "$server" 2> /dev/null; then
            tail -n 5 "$log" >&2
            exit 1
        fi
        if ((SECONDS > deadline)); then
            echo "no feeds after $UP_S s: is a release published ('make demo')? The end of $log:" >&2
            tail -n 5 "$log" >&2
            exit 1
        fi
        sleep 0.5
    done
}

# What runs beside the script ignores Ctrl-C.
interrupted() {
    kill $(jobs -p) 2> /dev/null || true
    exit 130
}
trap stop_server EXIT
trap interrupted INT TERM

# load NAME CONFIG [OPTION...]
load() {
    local name=$1 config=$2
    shift 2
    echo "running $name"
    # In this script's process group: Ctrl-C is for ghz, too.
    local run=(timeout --foreground "$LIMIT_S" "$ghz" --config "$CONFIGS/$config.json" --name "$name"
        --format json --output "$REPORTS/$name.json" "$@" "$address")
    # Beside the script it takes the place of the shell, which would die alone.
    if [[ $BASHPID == "$$" ]]; then "${run[@]}"; else exec "${run[@]}"; fi
}

ghz=$("$CONFIGS/install.sh")
mkdir -p "$REPORTS"
serves || start_server
rm -f "$REPORTS"/*.json "$REPORTS"/metrics_*.txt "$REPORTS/report.html"

"$PYTHON" "$CONFIGS/prepare.py" "$address" "$REPORTS/data"
interactions=$REPORTS/data/interactions.json
searches=$REPORTS/data/searches.json
[[ -f $searches ]] || echo "the release has no CLIP: searches are left out"
[[ -z $metrics ]] || "$PYTHON" "$CONFIGS/metrics.py" "$metrics" "$REPORTS/metrics_before.txt" || true

# Interactions first: they give the users of the feeds a history, whatever data the server has.
load record_interaction record_interaction --data-file "$interactions"
load list_feed list_feed
load stream_feed stream_feed
[[ ! -f $searches ]] || load search_videos search_videos --data-file "$searches"
load list_feed_at_rate list_feed_at_rate
# What a real day is like: everything together, at rates that do not wait for answers.
parts=()
load day_stream_feed day_stream_feed & parts+=($!)
load day_record_interaction day_record_interaction --data-file "$interactions" & parts+=($!)
[[ ! -f $searches ]] || { load day_search_videos day_search_videos --data-file "$searches" & parts+=($!); }
load day_list_feed day_list_feed
for part in "${parts[@]}"; do wait "$part"; done

[[ ! -f $REPORTS/metrics_before.txt ]] || "$PYTHON" "$CONFIGS/metrics.py" "$metrics" "$REPORTS/metrics_after.txt"
"$PYTHON" "$CONFIGS/report.py" "$REPORTS"
"$PYTHON" "$CONFIGS/summary.py" "$REPORTS" | tee "$REPORTS/summary.txt"
