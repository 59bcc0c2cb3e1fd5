"""`prepare.py HOST:PORT FOLDER`: requests about what the server has, for `ghz --data-file`.

An interaction with an unknown video is refused, and which videos are known depends on the data. Writes
`interactions.json`, in which some videos are met far more often than others and a view says how long the
video was watched, and, where the release has a CLIP, `searches.json` with the videos' own tags. ghz takes the
messages in turn; what stands in its templates it fills in for each call.
"""

import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import keek

_VIDEOS = 1000
_MESSAGES = 2000
_VIEWS = 0.9
"""Of the interactions; the others are likes."""
_DURATION_S = 30.0
"""Of videos whose own is not known."""
_CONFIGS = Path(__file__).parent


def main(target: str, folder: Path) -> int:
    """Writes the files; 1 when the catalogue is empty."""
    with keek.Client(target) as client:
        videos = list(itertools.islice(client.iter_videos(), _VIDEOS))
        has_clip = _has_clip(client)
    if not videos:
        print(f"the catalogue at {target} is empty", file=sys.stderr)
        return 1
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(1)
    # By Zipf's law: the k-th video is met 1/k as often as the first.
    draw.shuffle(videos)
    odds = [1 / rank for rank in range(1, len(videos) + 1)]
    drawn = draw.choices(videos, odds, k=_MESSAGES)
    _write(folder / "interactions.json", [_interaction(video, draw) for video in drawn])
    searches = folder / "searches.json"
    searches.unlink(missing_ok=True)
    if has_clip:
        _write(searches, [_search(list(video.tags)) for video in drawn])
    return 0


def _has_clip(client: keek.Client) -> bool:
    try:
        client.search_videos("a probe", page_size=1)
    except keek.FailedPreconditionError:
        return False
    return True


def _interaction(video: keek.Video, draw: random.Random) -> dict[str, Any]:
    message = _template("record_interaction")
    own = message["interaction"] | {"video_id": video.video_id, "kind": "INTERACTION_KIND_LIKE"}
    if draw.random() < _VIEWS:
        watched_s = draw.random() * (video.duration_s or _DURATION_S)
        own |= {"kind": "INTERACTION_KIND_VIEW", "watched": f"{watched_s:.3f}s"}
    return {**message, "interaction": own}


def _search(tags: list[str]) -> dict[str, Any]:
    message = _template("search_videos")
    return {**message, "text": " ".join(tags)} if tags else message


def _template(config: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((_CONFIGS / f"{config}.json").read_text("utf-8"))["data"]
    return data


def _write(path: Path, messages: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(messages), "utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2])))
