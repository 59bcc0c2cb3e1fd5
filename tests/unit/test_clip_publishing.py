"""The CLIP of a release: where it comes from, when it is stored anew, and which versions stay."""

from contextlib import suppress
from pathlib import Path

import pytest
from clip_records import RECORD

from keek_server.errors import FailedPreconditionError, SetupError
from keek_server.releases.manifest import ClipVersion, TowerVersion
from keek_server.releases.registry import ReleaseRegistry
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.storage.tables import releases
from keek_server.towers.clip_record import CLIP_FILES
from keek_server.towers.contract import CLIP_ENCODERS, CLIP_IMAGE, CLIP_TEXT, TOWERS, USER_TOWER
from keek_training.clip.files import ClipExport
from keek_training.publishing.clip import ClipSource, choose_clip, place_clip
from keek_training.publishing.kept import KeptRelease, ReleaseModels, active_release, kept_releases
from keek_training.publishing.repository import MODEL_FILE, prune_versions


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """An empty data directory, and a repository with configurations and no version."""
    repository = tmp_path / "models"
    for model in (*TOWERS, *CLIP_ENCODERS):
        (repository / model.model).mkdir(parents=True)
        (repository / model.model / "config.pbtxt").touch()
    return Settings(data_dir=tmp_path / "data", model_repository=repository)


def exported(settings: Settings, name: str = "latest", *, text: bytes = b"text") -> ClipExport:
    """What an export leaves, as far as publishing looks at it."""
    with ClipExport.named(name, settings).writing() as files:
        files.model(CLIP_IMAGE).write_bytes(b"image")
        files.model(CLIP_TEXT).write_bytes(text)
        RECORD.model_copy(update={"clip_model": f"clip of {name}"}).save(files.folder)
        (files.folder / "tokenizer.json").write_text("{}")
        files.write_report({})
    return ClipExport.named(name, settings)


def released(settings: Settings, release_id: str, version: int, clip: ClipVersion | None) -> KeptRelease:
    tower = TowerVersion(version=version, sha256=f"tower {version}", size_bytes=5)
    for name in TOWERS:
        (settings.model_repository / name.model / str(version)).mkdir(exist_ok=True)
    return KeptRelease(release_id=release_id, user_tower=tower, video_tower=tower, clip=clip)


def chosen(settings: Settings, name: str | None = None, live: KeptRelease | None = None) -> ClipSource:
    source = choose_clip(name, live, settings)
    assert source is not None
    return source


def test_without_an_export_the_first_release_has_no_clip(settings: Settings) -> None:
    assert choose_clip(None, None, settings) is None


def test_the_latest_export_is_taken_and_another_by_its_name(settings: Settings) -> None:
    exported(settings)
    exported(settings, "other")
    assert chosen(settings).record.clip_model == "clip of latest"
    assert chosen(settings, "other").record.clip_model == "clip of other"
    assert choose_clip("none", None, settings) is None


@pytest.mark.parametrize(
    ("name", "words"), [("missing", "no CLIP is exported in .*missing: keek-train"), ("../x", "cannot name")]
)
def test_an_export_that_is_not_there_is_refused(settings: Settings, name: str, words: str) -> None:
    with pytest.raises(SetupError, match=words):
        choose_clip(name, None, settings)


def test_an_export_that_was_cut_off_is_none_and_what_it_would_replace_stays(settings: Settings) -> None:
    exported(settings)
    with suppress(RuntimeError), ClipExport.named("latest", settings).writing() as files:
        files.model(CLIP_IMAGE).write_bytes(b"new")
        raise RuntimeError
    assert chosen(settings).image.read_bytes() == b"image"
    assert [path.name for path in (settings.data_dir / "clip").iterdir()] == ["latest"]


def test_only_what_no_kept_release_has_becomes_a_new_version(settings: Settings) -> None:
    repository = settings.model_repository
    exported(settings)
    first = place_clip(chosen(settings), 1, [], repository)
    assert (first.image.version, first.text.version) == (1, 1)
    kept = [released(settings, "r1", 1, first)]

    again = place_clip(chosen(settings), 2, kept, repository)
    assert again == first
    assert not (repository / "clip_image" / "2").exists()

    exported(settings, text=b"another text encoder")
    changed = place_clip(chosen(settings), 3, kept, repository)
    assert (changed.image, changed.text.version) == (first.image, 3)
    assert (repository / "clip_text" / "3" / MODEL_FILE).read_bytes() == b"another text encoder"

    (repository / "clip_image" / "1" / MODEL_FILE).unlink()
    assert place_clip(chosen(settings), 4, kept, repository).image.version == 4


def test_without_an_export_the_live_releases_clip_is_carried_over(settings: Settings, tmp_path: Path) -> None:
    export = exported(settings)
    source = chosen(settings)
    clip = place_clip(source, 1, [], settings.model_repository)
    live = released(settings, "r1", 1, clip)
    folder = settings.release_dir / "r1"
    folder.mkdir(parents=True)
    source.copy_files(folder)
    export.folder.rename(tmp_path / "gone")

    carried = chosen(settings, live=live)
    assert place_clip(carried, 2, [live], settings.model_repository) == clip
    target = tmp_path / "release"
    target.mkdir()
    carried.copy_files(target)
    assert sorted(path.name for path in target.iterdir()) == sorted(CLIP_FILES)

    (folder / "tokenizer.json").unlink()
    with pytest.raises(SetupError, match=r"r1 cannot be carried over, .*tokenizer\.json is missing"):
        choose_clip(None, live, settings)


def test_a_version_that_a_kept_release_uses_stays_however_old_it_is(settings: Settings) -> None:
    repository = settings.model_repository
    exported(settings)
    clip = place_clip(chosen(settings), 1, [], repository)
    for version in range(1, 7):
        released(settings, f"r{version}", version, clip)
    kept = [released(settings, f"r{version}", version, clip) for version in (2, 5)]
    (repository / "user_tower" / "7").mkdir()
    (repository / "user_tower" / "8.tmp").mkdir()
    new = ReleaseModels(
        user_tower=kept[0].user_tower.model_copy(update={"version": 6}), video_tower=kept[1].video_tower
    )

    prune_versions(repository, [new.by_name, *(release.by_name for release in kept)], 6)

    left = {path.name for path in (repository / USER_TOWER.model).iterdir()}
    assert left == {"config.pbtxt", "2", "5", "6", "7", "8.tmp"}  # 7 is newer: somebody else's
    for encoder in CLIP_ENCODERS:
        assert (repository / encoder.model / "1" / MODEL_FILE).is_file()


def test_a_clip_that_no_kept_release_uses_is_removed(settings: Settings) -> None:
    exported(settings)
    place_clip(chosen(settings), 1, [], settings.model_repository)
    kept = released(settings, "r2", 2, None)
    prune_versions(settings.model_repository, [kept.by_name], 2)
    for encoder in CLIP_ENCODERS:
        assert [path.name for path in (settings.model_repository / encoder.model).iterdir()] == [
            "config.pbtxt"
        ]


async def test_the_active_release_and_the_newest_are_kept_whatever_else_their_manifests_say(
    settings: Settings,
) -> None:
    tower = {"version": 1, "sha256": "", "size_bytes": 1}
    async with open_database(settings) as database:
        assert await active_release(database) is None
        assert await kept_releases(database, 2) == []
        async with database.write() as connection:
            for number in range(5):
                manifest = {
                    "release_id": f"r{number}",
                    "user_tower": tower,
                    "video_tower": tower,
                    "old": True,
                }
                row = {"release_id": f"r{number}", "create_time_us": number, "manifest": manifest, "state": 1}
                await connection.execute(releases.insert().values(row))
        registry = ReleaseRegistry(database)
        await registry.activate("r1", "test")
        await registry.activate("r0", "test")
        live = await active_release(database)
        assert live is not None
        assert live.release_id == "r0"
        # The active one, what it would be gone back to, and the newest.
        assert [release.release_id for release in await kept_releases(database, 2)] == [
            "r0",
            "r1",
            "r4",
            "r3",
        ]
        with pytest.raises(FailedPreconditionError, match="files of release r2 are gone"):
            await registry.activate("r2", "test")
        await registry.activate("r4", "test")
        # What a server has open stays as well, but nothing that is gone comes back.
        kept = await kept_releases(database, 1, ["r2", "r1"])
        assert [release.release_id for release in kept] == ["r4", "r0", "r1"]
