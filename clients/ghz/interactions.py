"""`interactions.py HOST:PORT CONFIG OUTPUT`: the config's call data with the server's own videos.

An interaction with an unknown video is refused, and which videos are known depends on the
data that the server has. OUTPUT is for `ghz --data-file`: one message a video, which
ghz takes in turn; what its templates fill in stays as it is.
"""

import copy
import itertools
import json
import sys
from pathlib import Path

import keek

_VIDEOS = 1000


def main(target: str, config: Path, output: Path) -> int:
    """Writes the file; 1 when the catalogue is empty."""
    template = json.loads(config.read_text("utf-8"))["data"]
    with keek.Client(target) as client:
        video_ids = [video.video_id for video in itertools.islice(client.iter_videos(), _VIDEOS)]
    if not video_ids:
        print(f"the catalogue at {target} is empty", file=sys.stderr)
        return 1
    messages = []
    for video_id in video_ids:
        message = copy.deepcopy(template)
        message["interaction"]["video_id"] = video_id
        messages.append(message)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(messages), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])))
