"""Manifests of releases that have no files."""

from keek_server.releases.manifest import Manifest, TowerVersion
from keek_server.retrieval.index import IndexReport


def bare_manifest(release_id: str, number: int = 0) -> Manifest:
    """A manifest of the `number`-th release, with towers of the version after it."""
    tower = TowerVersion(version=number + 1, sha256="", size_bytes=1)
    return Manifest(
        release_id=release_id,
        create_time_us=1_000_000 + number,
        user_tower=tower,
        video_tower=tower,
        dimension=64,
        history_length=5,
        index=IndexReport("exact", 1, 0, 0, 1.0, 1, 0.0),
        files_sha256={},
        metrics={},
    )
