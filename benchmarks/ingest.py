"""How soon an uploaded video is recommendable, and how fast a large corpus is embedded and indexed.

The first part trains and publishes a small release with a CLIP, starts a server, and uploads real
clips, one after the other. The time runs from the beginning
of the upload until a search of the live index knows the video. What the decoder and CLIP took of it, the
server's own metrics say.

The second part is `benchmarks.ingest_bulk`.
"""

import argparse
import asyncio
import os
import re
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

import keek
from benchmarks.clips import any_clip, write_clip
from benchmarks.ingest_bulk import measure_bulk
from benchmarks.servers import report
from benchmarks.small_release import publish_small_release
from keek_server.embedded.ports import HOST, free_port
from keek_training.demo.processes import running_server, wait_until_serving

_UP_S = 120.0
_GIVE_UP_S = 60.0
_POLL_S = 0.002
_SUFFIXES = (".mp4", ".webm", ".mkv", ".mov")
_STAGE = re.compile(r'^keek_video_stage_seconds_sum\{stage="(\w+)"\} (\S+)$', re.MULTILINE)


def main() -> None:
    """Prints one JSON object, and writes it to benchmarks/results/ingest.json."""
    parser = argparse.ArgumentParser(description="From a file to a feed")
    parser.add_argument("--uploads", type=int, default=66, help="clips to upload (default: 66)")
    parser.add_argument(
        "--videos",
        type=Path,
        default=_real_clips(),
        help="folder of real clips (default: videos in KEEK_TEST_DATA, or else rendered ones)",
    )
    parser.add_argument("--clip", default="ViT-B-32", help="CLIP's architecture (default: ViT-B-32)")
    parser.add_argument("--pretrained", metavar="TAG|PATH", help="its weights; untrained when left out")
    parser.add_argument("--bulk", type=int, default=1_000_000, help="videos in bulk; 0 leaves it out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="keek-ingest-") as directory:
        result = _measure_uploads(Path(directory), arguments)
    if arguments.bulk:
        result |= {"bulk": asyncio.run(measure_bulk(arguments.bulk))}
    report("ingest", result)


def _real_clips() -> Path | None:
    folder = os.environ.get("KEEK_TEST_DATA")
    clips = Path(folder) / "videos" if folder else None
    return clips if clips is not None and clips.is_dir() else None


def _measure_uploads(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    clips = _clips(directory, arguments.videos)
    weights = ("--pretrained", arguments.pretrained) if arguments.pretrained else ("--untrained",)
    publish_small_release(directory, ("--model", arguments.clip, *weights))
    with (
        _metrics_address() as metrics,
        running_server(directory / "server.log", timeout_s=_UP_S) as address,
        keek.Client(address) as client,
    ):
        wait_until_serving(client, "keek.v1.FeedService", timeout_s=_UP_S)
        for i, clip in enumerate(clips):
            _upload(client, clip, f"warm-up-{i}")
        before = _stages(metrics)
        chosen = [clips[i % len(clips)] for i in range(arguments.uploads)]
        bar = tqdm(chosen, desc="uploads", file=sys.stderr)
        times = [_upload(client, clip, f"upload-{i}") for i, clip in enumerate(bar)]
        stages = {name: total - before.get(name, 0.0) for name, total in _stages(metrics).items()}
    about = {
        "clip": arguments.clip,
        "clip_untrained": not arguments.pretrained,
        "real_clips": arguments.videos is not None,
    }
    return about | _result(times, stages)


def _result(times: Sequence[tuple[float, float]], stages: dict[str, float]) -> dict[str, Any]:
    totals, acknowledged = zip(*times, strict=True)
    after = [total - ack for total, ack in times]
    whole, count = sum(totals), len(totals)
    looking = stages["decode"] + stages["clip"]
    return {
        "uploads": count,
        "seconds_to_recommendable_p50": _quantile(totals, 50),
        "seconds_to_recommendable_p99": _quantile(totals, 99),
        "seconds_acknowledged_p50": _quantile(acknowledged, 50),
        "seconds_from_acknowledgement_p50": _quantile(after, 50),
        "seconds_from_acknowledgement_p99": _quantile(after, 99),
        "share_in_decode": round(stages["decode"] / whole, 3),
        "share_in_clip": round(stages["clip"] / whole, 3),
        "seconds_elsewhere_mean": round((whole - looking) / count, 4),
    }


def _quantile(values: Sequence[float], percent: int) -> float:
    return round(statistics.quantiles(values, n=100)[percent - 1], 4)


def _clips(directory: Path, given: Path | None) -> list[Path]:
    if given is not None:
        if clips := sorted(path for path in given.iterdir() if path.suffix in _SUFFIXES):
            return clips
        raise SystemExit(f"{given} holds no clips ({', '.join(_SUFFIXES)})")
    folder = directory / "clips"
    folder.mkdir()
    return [write_clip(any_clip(seed, 5.0), folder, f"clip-{seed}") for seed in range(11)]


def _upload(client: keek.Client, clip: Path, video_id: str) -> tuple[float, float]:
    """Seconds until it was recommendable, and until it was acknowledged."""
    started = time.perf_counter()
    client.upload_video(clip, keek.Video(video_id=video_id))
    acknowledged_s = time.perf_counter() - started
    while (elapsed_s := time.perf_counter() - started) < _GIVE_UP_S:
        try:
            client.list_similar_videos(video_id, page_size=1)
        except keek.NotFoundError:
            time.sleep(_POLL_S)
        else:
            return time.perf_counter() - started, acknowledged_s
    raise TimeoutError(f"{video_id} is not recommendable after {elapsed_s:.1f} s")


@contextmanager
def _metrics_address() -> Iterator[str]:
    """Has the server that is started inside tell its metrics there."""
    address = f"{HOST}:{free_port()}"
    os.environ["KEEK_METRICS_LISTEN"] = address
    try:
        yield address
    finally:
        del os.environ["KEEK_METRICS_LISTEN"]


def _stages(address: str) -> dict[str, float]:
    """Seconds that each stage took, over all videos."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5.0) as answer:
        return {name: float(total) for name, total in _STAGE.findall(str(answer.read(), "utf-8"))}


if __name__ == "__main__":
    main()
