"""CLIP as a part of the release: published with it, and carried over by the next one."""

import asyncio
import hashlib

import pytest
from serving import WITH_CLIP, active, command

from keek_server.embedded import EmbeddedStack
from keek_server.towers.client import open_towers
from keek_server.towers.clip import Clip
from keek_server.towers.clip_record import CLIP_FILES

pytestmark = pytest.mark.skipif(not WITH_CLIP, reason="needs the extra keek[clip]")


async def test_a_release_has_the_exported_clip_and_the_next_one_carries_it_over(
    published: EmbeddedStack,
) -> None:
    settings = published.settings
    first = await active(published)
    assert first.clip is not None
    assert first.clip.untrained
    assert first.clip.clip_model.startswith("seeded-small/untrained@")

    export = settings.data_dir / "clip" / "latest"
    aside = export.rename(export.with_name("aside"))
    try:
        done = await asyncio.to_thread(command, published, "keek-train", "publish", "--run", first.source)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "its CLIP is untrained" in done.stdout
    finally:
        aside.rename(export)

    second = await active(published)
    assert second.user_tower.version > first.user_tower.version
    assert second.clip == first.clip
    folder = settings.release_dir / second.release_id
    for name in CLIP_FILES:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == second.files_sha256[name]
    async with open_towers(settings) as towers:
        clip = Clip.open(
            folder,
            towers,
            image_version=second.clip.image.version,
            text_version=second.clip.text.version,
            deadline_s=settings.clip_deadline_s,
        )
        await clip.check()
    assert clip.record.clip_model == second.clip.clip_model
