"""The demonstration from beginning to end."""

import asyncio
import json
import tempfile
import uuid
from pathlib import Path

import sqlalchemy as sa

import keek
from keek_server.embedded import with_running_stack
from keek_server.errors import SetupError
from keek_server.releases.registry import ReleaseRegistry
from keek_server.settings import Settings
from keek_server.storage.database import open_database
from keek_server.storage.tables import interactions, videos
from keek_server.towers.client import open_towers
from keek_training.demo.clip import render_clip
from keek_training.demo.processes import run_command, running_server, wait_for_release
from keek_training.demo.scenes import (
    Scene,
    like_and_look_again,
    make_a_video_viral,
    stream_a_feed,
    time_feeds,
    upload_a_clip,
    watch_a_feed,
)
from keek_training.publishing.clip import NO_CLIP

_RUN = "demo"
_UP_S = 60.0
_PUBLISHED_S = 60.0
_USERS = 50
_VIEWERS = 2
_NEEDED = ("like_changed_next_feed", "viral_video_reached_other_user")


def demo(
    data: str, settings: Settings, output: Path, *, epochs: int | None = None, with_clip: bool = True
) -> int:
    """Imports, trains, exports, publishes, serves; shows feeds; writes what happened to `output`.

    Args:
        data: A data set as for `keek-train import`.
        settings: Where everything is.
        output: What it showed, as JSON.
        epochs: The most passes over the data.
        with_clip: Whether the release gets a CLIP, and a clip is uploaded; needs the extra clip.

    Returns:
        The exit code: 0 when everything that should happen did.
    """
    scenes = []
    bound = ("--epochs", str(epochs)) if epochs else ()
    facts: dict[str, object] = {"data": data}
    seconds = {"import": run_command("keek-train", "import", data)}
    facts |= asyncio.run(_counts(settings))
    with running_server(settings.data_dir / "logs" / "server.log", timeout_s=_UP_S) as address:
        seconds["train"] = run_command("keek-train", "train", "--run", _RUN, *bound)
        seconds["export"] = run_command("keek-train", "export", "--run", _RUN)
        if with_clip:
            seconds["export-clip"] = run_command("keek-train", "export-clip")
        release = ("--run", _RUN) if with_clip else ("--run", _RUN, "--clip", NO_CLIP)
        seconds["publish"] = run_command("keek-train", "publish", *release)
        facts["triton_version"] = asyncio.run(_triton_version(settings))
        scenes += [Scene(f"keek-train {name}", "", took_s * 1000) for name, took_s in seconds.items()]
        users = asyncio.run(_active_users(settings))
        with keek.Client(address) as client:
            release_id = asyncio.run(_active_release(settings))
            waited_s = wait_for_release(client, release_id, timeout_s=_PUBLISHED_S)
            scenes.append(Scene("server takes the release over", release_id, waited_s * 1000))
            scenes.append(stream_a_feed(client, users[0]))
            scenes += [watch_a_feed(client, user_id) for user_id in users[-_VIEWERS:]]
            scenes.append(like_and_look_again(client, users[1]))
            scenes.append(make_a_video_viral(client, users[3:], users[2]))
            if with_clip:
                scenes.append(_upload(client))
            scenes.append(time_feeds(client, users))
    for scene in scenes:
        facts |= scene.facts
    _write(output, facts)
    _print(scenes, facts, output)
    needed = (*_NEEDED, "upload_recommendable") if with_clip else _NEEDED
    return 0 if all(facts[name] for name in needed) else 1


def _upload(client: keek.Client) -> Scene:
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "disc.mp4"
        render_clip(clip)
        return upload_a_clip(client, clip, f"demo-{uuid.uuid4().hex[:8]}")


async def _counts(settings: Settings) -> dict[str, object]:
    users = sa.func.count(sa.distinct(interactions.c.user_id))
    async with open_database(settings) as database, database.engine.connect() as connection:
        counted = {
            "videos": sa.select(sa.func.count()).select_from(videos),
            "users": sa.select(users),
            "interactions": sa.select(sa.func.count()).select_from(interactions),
        }
        return {name: (await connection.execute(query)).scalar_one() for name, query in counted.items()}


async def _active_users(settings: Settings) -> list[str]:
    """Users with a history of some length, the same ones for the same data."""
    query = (
        sa.select(interactions.c.user_id)
        .group_by(interactions.c.user_id)
        .having(sa.func.count() >= 10)
        .order_by(interactions.c.user_id)
        .limit(_USERS)
    )
    async with open_database(settings) as database, database.engine.connect() as connection:
        found = list((await connection.execute(query)).scalars())
    if len(found) < _USERS:
        raise SetupError(f"the data has {len(found)} users with ten interactions; {_USERS} are needed")
    return found


async def _active_release(settings: Settings) -> str:
    async with open_database(settings) as database:
        return await ReleaseRegistry(database).active() or ""


async def _triton_version(settings: Settings) -> str:
    async with open_towers(with_running_stack(settings) or settings) as towers:
        return await towers.server_version()


def _write(output: Path, facts: dict[str, object]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(facts, indent=2) + "\n", "utf-8")


def _print(scenes: list[Scene], facts: dict[str, object], output: Path) -> None:
    width = max(len(scene.title) for scene in scenes)
    print(f"\n{'what':{width}}  {'ms':>9}  outcome")
    for scene in scenes:
        print(f"{scene.title:{width}}  {scene.took_ms:9.1f}  {scene.outcome}")
    print(
        f"\n{facts['videos']} videos, {facts['users']} users, {facts['interactions']} interactions; "
        f"release {facts['release']}; Triton {facts['triton_version']}; written to {output}"
    )
