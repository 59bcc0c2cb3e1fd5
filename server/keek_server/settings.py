"""Every setting of the server and of training, read once from `KEEK_*` variables.

`Settings()` reads the environment; tests pass values by name instead. Nothing else
in the code reads the environment.
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from keek_server.interactions.kinds import InteractionKind, TrendingScope
from keek_server.retrieval.kinds import ChosenKind, GpuKind

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Seconds = Annotated[float, Field(gt=0.0)]


def _kind(name: object) -> object:
    """A kind by its name, in any case; numbers stay as they are."""
    return InteractionKind.__members__.get(name.upper(), name) if isinstance(name, str) else name


NamedKind = Annotated[InteractionKind, BeforeValidator(_kind)]


class Settings(BaseSettings):
    """The whole configuration; a field's variable is `KEEK_` and its name."""

    model_config = SettingsConfigDict(env_prefix="KEEK_", frozen=True, extra="forbid")

    # -- where things are -------------------------------------------------------------------------
    data_dir: Path = Path("var")
    """Everything that Keek writes on this machine: database, releases, runs, logs."""
    model_repository: Path = Path("model_repository")
    """Triton's model repository: `config.pbtxt` is given, numbered folders are published."""
    listen: str = "127.0.0.1:50051"
    """host:port of the gRPC server. Port 0 takes a free one."""
    interactions_listen: str | None = None
    """host:port where InteractionService alone is served as well, with its own bound for calls that wait:
    interactions get in there when more feeds come to `listen` than a server can even refuse."""
    metrics_listen: str | None = None
    """host:port of the Prometheus metrics; none when unset."""
    database_url: str = ""
    """SQLAlchemy URL with an async driver (`sqlite+aiosqlite`, `postgresql+asyncpg`);
    SQLite in `data_dir` when empty."""
    redis_url: str | None = None
    """`redis://host:port/db`; `keek-server up` starts its own when unset."""
    redis_prefix: str = "keek"
    """First part of every Redis key."""
    triton_url: str | None = None
    """host:port of Triton's gRPC endpoint; `keek-server up` starts its own when unset."""
    triton_control_token: SecretStr | None = None
    """What Triton's restricted model-control protocol asks for; publishers need it."""
    triton_environment: Path = Path(".venv-triton")
    """The virtual environment that carries the embedded tritonserver."""

    # -- deadlines, seconds -----------------------------------------------------------------------
    startup_timeout_s: Seconds = 8.0
    """How long to wait for Triton, Redis and SQL at start before giving up with a message."""
    feed_deadline_s: Seconds = 1.0
    """For a feed whose caller gave no deadline; a shorter one of the caller's holds."""
    source_deadline_s: Seconds = 0.25
    """One source's slice of a feed's deadline; a source that is late is left out."""
    redis_deadline_s: Seconds = 0.1
    """One Redis round trip on the feed's path."""
    sql_read_deadline_s: Seconds = 0.15
    """One read of SQL on the feed's path: a history while Redis is gone, the owners of what trends."""
    sql_deadline_s: Seconds = 5.0
    """One SQL transaction."""
    commit_delay_s: Seconds = 5.0
    """The longest that an interaction waits for its transaction to begin; then it is refused."""
    wait_for_feed_s: Seconds = 2.0
    """The longest that `wait_for_feed` holds an acknowledgement back."""
    clip_deadline_s: Seconds = 15.0
    """One batch of images or texts through CLIP, and how long it may wait for its turn. A full batch
    of images takes ViT-B-32 two seconds on two cores."""
    search_delay_s: Seconds = 2.0
    """The longest that a search waits for its turn; then it is refused. Feeds do not wait behind
    searches."""
    drain_s: Seconds = 10.0
    """How long running calls may take to finish at shutdown; then they end as UNAVAILABLE."""
    drain_delay_s: Annotated[float, Field(ge=0.0)] = 0.0
    """How long a server that stops goes on taking calls while its health says NOT_SERVING, for load balancers
    that look at it now and then."""
    worker_ready_s: Seconds = 30.0
    """How long a worker (`--workers`) may take to open what serves before it takes calls without it; a
    rolling restart does not go on then."""

    # -- overload ---------------------------------------------------------------------------------
    waiting_limit: Annotated[int, Field(ge=3)] = 96
    """Calls that may wait until a server takes them up, one in a turn of its event loop. Some are refused
    from two thirds of it on. gRPC does that by itself, at no cost to the server, as CANCELLED."""
    concurrency_limit_min: Annotated[int, Field(ge=2)] = 128
    """Feeds and searches that may be under way on a server at the same time, however slow they have become.
    Searches are refused at half of the limit already. Less keeps latencies lower in an overload, and refuses
    some calls when the machine pauses."""
    concurrency_limit_max: Annotated[int, Field(ge=2)] = 256
    """The most of them, however fast they are; between the two the limit follows what calls take. As many
    interactions may be under way beside them."""

    # -- the log and its projection ---------------------------------------------------------------
    commit_rows: Annotated[int, Field(ge=1)] = 4000
    """The most interactions that share a transaction; a larger message goes alone."""
    interaction_retention_days: Annotated[int, Field(ge=31)] | None = None
    """Whole months of interactions that lie further back are removed; kept for ever when unset.
    The projection is built anew then, from what is left."""
    exposure_retention_days: Annotated[int, Field(ge=31)] | None = None
    """The same for the record of what was shown."""
    interaction_csv: Path | None = None
    """A file that is kept up to date with the log, in the prototype's format, for those who still
    read it; none when unset."""
    projection_lease_s: Annotated[float, Field(ge=0.5)] = 3.0
    """How soon another server goes on with the projection when the one that does it is gone."""
    projection_poll_s: Seconds = 0.1
    """How often the log is asked for what other servers and imports appended."""

    # -- videos -----------------------------------------------------------------------------------
    media_url: str = ""
    """Where uploaded files are kept: a folder, or a URL that fsspec knows (`s3://bucket/prefix`, with
    the extra `keek[server,s3]`). `media` in `data_dir` when empty. All servers must reach it."""
    scratch_dir: Path | None = None
    """Local folder for uploads that are worked on; `tmp` in `data_dir` when unset."""
    media_options: dict[str, Any] = {}
    """fsspec's options for `media_url`, as JSON."""
    media_deadline_s: Seconds = 30.0
    """Reading or writing one part of a file there."""
    video_sources: tuple[str, ...] = ()
    """Prefixes of paths and URLs that CreateVideo may take videos from, as JSON; none by default. `https://`
    needs the extra `keek[server,http]`, and redirects are not followed."""
    upload_limit: Annotated[int, Field(ge=1)] = 64
    """Videos that come in at a server at the same time, uploaded or fetched from where they lie; further
    ones are refused."""
    upload_idle_s: Seconds = 60.0
    """How long an upload's next bytes may take to arrive; then its call ends, and another can go on."""
    upload_keep_s: Seconds = 24 * 3600.0
    """How long an upload that was cut off can go on."""
    watch_limit: Annotated[int, Field(ge=1)] = 128
    """Callers of WatchVideo at the same time, and as many of WatchTrending and of WatchReleases; further ones
    are refused."""
    watch_poll_s: Seconds = 0.25
    """How often the database is asked for each caller of WatchVideo."""
    clip_frames: Annotated[int, Field(ge=1, le=32)] = 8
    """Frames of a video that CLIP looks at."""
    catalogue_poll_s: Seconds = 0.1
    """How often the catalogue is asked for what other servers changed."""

    # -- uploads: decoding ------------------------------------------------------------------------
    video_max_bytes: Annotated[int, Field(ge=1)] = 256 * 2**20
    """Of a video's file."""
    video_max_duration_s: Seconds = 600.0
    """Of a video, as its header says and as measured, whichever is longer."""
    video_max_side_pixels: Annotated[int, Field(ge=16, le=16384)] = 4096
    """The longer side of a video's pictures, or of an image that is searched for."""
    video_max_frame_rate: Annotated[float, Field(gt=0.0)] = 240.0
    """Frames a second, on average over the video."""
    video_max_frames: Annotated[int, Field(ge=1)] = 72_000
    """In one video. The default is 600 s at 120 a second."""
    video_codecs: frozenset[str] = frozenset({"h264", "hevc", "vp8", "vp9", "av1", "mpeg4"})
    """FFmpeg's names of the codecs that are taken. As JSON."""
    video_verify_pixels: Annotated[int, Field(ge=0)] = 10**9
    """A video with at most so many pixels, over all its frames, is decoded whole, so that damage
    anywhere is found; of a larger one only what the frames that are looked at need. The default is
    36 s of 720p at 30 a second, and takes two to three seconds of one core."""
    image_max_bytes: Annotated[int, Field(ge=1)] = 16 * 2**20
    """Of an image that is searched for."""
    decode_workers: Annotated[int, Field(ge=1)] = 2
    """Videos that are decoded at the same time, each in a process of its own on one core, and
    processes that are kept ready, of about 45 MiB each. As many images are decoded beside them."""
    decode_queue: Annotated[int, Field(ge=0)] = 32
    """Videos, and images, that may wait for their turn; further ones are refused."""
    decode_timeout_s: Seconds = 30.0
    """The longest that decoding one file may take, once its turn has come."""
    decode_cpu_s: Annotated[int, Field(ge=1)] = 20
    """Processor time for one file, in whole seconds."""
    decode_memory_mb: Annotated[int, Field(ge=64)] = 1024
    """MiB of address space for one file, beyond what an idle process has."""

    # -- the feed ---------------------------------------------------------------------------------
    personalised_share: Share = 0.7
    """Share of a feed's slots for personalised videos; the rest is trending."""
    per_owner_cap: Annotated[int, Field(ge=1)] = 2
    """Videos of one owner on one page."""
    history_limit: Annotated[int, Field(ge=1, le=200)] = 200
    """Interactions kept as a user's history."""
    seen_limit: Annotated[int, Field(ge=1)] = 2000
    """Videos remembered as seen by a user, newest kept."""
    reuse_user_vectors: bool = True
    """Whether a user's vector, and the videos found for it, serve further feeds as long as nothing that they
    were computed from has changed: the history, the seen videos, the release, the vectors of the videos.
    The ages of interactions are counted in steps of a fifth, whether or not anything is kept."""
    ranker: bool = False
    """Whether the release's ranker, if it has one, orders the personalised videos of a feed; otherwise their
    scores do. Arms of experiments may say otherwise."""
    trending_refresh_s: Annotated[float, Field(ge=0.0)] = 0.2
    """How old the head of the trending list may be that a server keeps for its feeds; 0 reads it for every
    feed. Who waits for an interaction to be in the feed (`wait_for_feed`) has it read anew."""

    # -- experiments ------------------------------------------------------------------------------
    exploration: Share = 0.0
    """Share of a feed's slots whose source, personalised or trending, is drawn by chance: what
    `keek-train replay` learns from. The odds are logged."""
    video_exploration: Share = 0.0
    """Share of a feed's personalised slots whose video is drawn by chance, among the twenty best left:
    what `keek-train replay --release` learns from. Not in feeds that ask for a filter or block owners."""
    exposure_sampling: Share = 1.0
    """Share of the users whose feeds are logged, all of each: experiments are measured by these alone."""
    experiment_holdout: Share = 0.0
    """Share of all users whom no experiment takes. Must be the same on all servers."""
    experiment_review_s: Seconds = 300.0
    """How often the figures of a running experiment with guardrails or adaptation are looked at, by any one
    server."""

    # -- trending ---------------------------------------------------------------------------------
    trending_half_life_s: Seconds = 10.8 * 3600
    """An interaction's weight halves in this time. The default leaves less than 1 % after the
    window: 0.5 ** (72 h / 10.8 h) = 0.0098."""
    trending_window_s: Seconds = 72 * 3600.0
    """One user counts once per video and kind within a window; older events no longer trend."""
    trending_limit: Annotated[int, Field(ge=100)] = 100_000
    """Videos kept as trending; the weakest are trimmed."""
    trending_scopes: frozenset[TrendingScope] = frozenset()
    """What trending is also kept for: each `tag`, each `region`. As JSON: `["tag", "region"]`."""
    trending_scope_limit: Annotated[int, Field(ge=100)] = 1_000
    """Videos kept as trending in one tag or region."""
    rising_half_life_s: Seconds = 3600.0
    """The short half-life that the rising list compares with `trending_half_life_s`."""
    rising_min_score: Annotated[float, Field(ge=0.0)] = 3.0
    """The least weight, decayed by the short half-life, that makes a video rise: a single
    interaction with a video that nobody knew is no rise."""
    interaction_weights: dict[NamedKind, float] = {
        InteractionKind.LIKE: 1.0,
        InteractionKind.SAVE: 2.0,
        InteractionKind.SHARE: 2.0,
        InteractionKind.VIEW: 0.1,
    }
    """Weight of each kind in trending; a kind that is not named weighs nothing. As JSON:
    `{"like": 1.0, "share": 2.0}`."""

    # -- the index --------------------------------------------------------------------------------
    index_exact_below: Annotated[int, Field(ge=0)] = 20_000
    """Corpora smaller than this are searched exactly."""
    index_recall_target: Share = 0.99
    """recall@100 against exact search that an index is tuned to when it is built."""
    index_memory_mib: Annotated[int | None, Field(ge=1)] = None
    """What the index of videos may take in memory, per machine; as much as it needs by default. A smaller one
    keeps codes of its vectors, and scores the best candidates again by the whole ones."""
    index_kind: ChosenKind | None = None
    """The kind of index; by default the fastest one of FAISS that fits. `milvus` is searched in Milvus, at
    `milvus_url`, with the extra `keek[milvus]`."""
    index_gpu: Annotated[int | None, Field(ge=0)] = None
    """The GPU that searches the indexes of videos, as CUDA counts, from 0; none when unset. Needs the extra
    `keek[gpu]`."""
    index_gpu_memory_mib: Annotated[int | None, Field(ge=1)] = None
    """What copies of indexes may take of its memory, together; as much as there is by default. A release
    whose copy does not fit beside that of the one before gets it after the swap."""
    index_gpu_kind: GpuKind = "copy"
    """What it holds: the release's own index, or a graph that cuVS builds of its vectors (`cagra`, with the
    extra `keek[gpu-cuvs]`)."""
    milvus_url: str | None = None
    """Of Milvus (`http://host:19530`, `https://...`), or a path that ends in `.db` for Milvus Lite in this
    process. Servers need it as long as a release that is searched there may serve."""
    milvus_token: SecretStr | None = None
    """What Milvus asks for: `user:password`, or an API key."""
    milvus_deadline_s: Seconds = 1.0
    """One call to Milvus while feeds are served."""
    milvus_alias: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}$")] = "keek_videos"
    """The alias of the active release's collection in Milvus, and how the names of all collections begin."""
    fresh_limit: Annotated[int, Field(ge=1)] = 100_000
    """Videos newer than the index that are searched beside it; of more, the newest. Each takes about
    1.5 KiB. As many users are kept with vectors newer than the release."""
    audience_limit: Annotated[int, Field(ge=1)] = 100_000
    """Users whose vectors a release holds, those who were active last."""
    audience_poll_s: Seconds = 1.0
    """How often users who were active get new vectors for FindAudience."""

    # -- releases ---------------------------------------------------------------------------------
    release_poll_s: Seconds = 2.0
    """How often the registry is asked what should be served, beside the announcement."""
    server_name: str = ""
    """What `keek releases` calls this server; its host and the port that it listens on when empty."""
    heartbeat_s: Seconds = 1.0
    """How often a server says what it runs."""
    server_stale_s: Seconds = 10.0
    """A server that has said nothing for so long is not waited for any more."""
    admin_token: SecretStr | None = None
    """What callers that activate releases and the like must show (`authorization: Bearer TOKEN`);
    nobody may when unset."""
    shadow_limit: Annotated[int, Field(ge=1)] = 2
    """Feeds that a server computes for a shadowed release at the same time; further ones are left out."""
    rollback_window_s: Seconds = 60.0
    """What a new release's feeds are judged by: those of so long."""
    rollback_min_feeds: Annotated[int, Field(ge=1)] = 50
    """Fewer feeds than this in the window say nothing about a release."""
    rollback_error_rate: Share = 0.05
    """A release is rolled back when the personalised videos of more of its feeds fail than this, and of
    more than twice the share of the release before. 1 never does."""
    rollback_empty_rate: Share = 0.05
    """The same for feeds without any personalised video for users with a history."""
    rollback_watch_s: Seconds = 1800.0
    """How long after its activation a release is watched like this; a canary is for as long as it runs."""
    publish_converge_s: Seconds = 60.0
    """How long publishing waits for all servers to run the new release before it says which do not."""
    releases_kept: Annotated[int, Field(ge=2)] = 3
    """Releases whose models and files stay, to go back to: the newest, beside what serves."""

    # -- gates: what a new release must show before it may serve -----------------------------------
    gate_parity: Annotated[float, Field(ge=0.0)] = 1e-4
    """Largest difference of any element between the golden vectors and the same through Triton, over the
    vectors' root mean square norm where that is above 1."""
    gate_max_norm: Annotated[float, Field(gt=0.0)] = 1e3
    """Largest L2 norm of any vector; all must be finite."""
    gate_spread: Annotated[float, Field(ge=0.0)] = 1e-3
    """Least spread of vectors, for users and for videos alike: the root mean square distance from
    their mean, over their root mean square norm. Constant and zero vectors have none."""
    gate_recall: Share = 0.95
    """Least recall@100 of the index against exact search, on real user vectors."""
    gate_quality: Share = 0.7
    """Least recall@100 on the held-out tail of the log, as a share of the live release's on the same. Of a
    corpus below 1,000 videos, recall at a tenth of it. What counts is the upper end of the share's 95 %
    interval, so that few users refuse nothing by chance."""
    gate_overlap: Share = 0.0
    """Least share of the live release's first 50 personalised videos that sampled users get again. 0
    only measures: models that are trained anew may rightly differ."""
    gate_latency: Annotated[float, Field(gt=0.0)] = 5.0
    """Most times that a tower may take as long in Triton as the live release's in the same run."""
    gate_latency_ms: Annotated[float, Field(gt=0.0)] = 50.0
    """Most milliseconds that one user, or one video, may take; what counts where there is no live release
    yet."""
    gate_size_mb: Annotated[float, Field(gt=0.0)] = 1024.0
    """Most MiB of a tower's file."""
    gate_ranker_ndcg: Annotated[float, Field(ge=0.0)] = 1.0
    """Least NDCG of a ranker on the latest pages of the log, as a share of the dot product's there: with
    less, a release is published without it."""
    gate_users: Annotated[int, Field(ge=1)] = 500
    """Users that are sampled from the log to measure a release with."""

    # -- the ranker -------------------------------------------------------------------------------
    ranker_min_pages: Annotated[int, Field(ge=20)] = 2000
    """Fewer pages of the log that something came of than this teach no ranker."""

    # -- the hourly job ---------------------------------------------------------------------------
    hourly_min_interactions: Annotated[int, Field(ge=1)] = 1000
    """Fewer new interactions than this are no reason for a new release."""
    hourly_min_videos: Annotated[int, Field(ge=1)] = 1000
    """So many new, changed or deleted videos get a new index, with the models that serve, where there is no
    reason to train them anew."""
    hourly_epochs: Annotated[int, Field(ge=1)] = 1
    """The most passes of a fine-tuning."""
    hourly_ranker_days: Annotated[float, Field(gt=0.0)] = 7.0
    """The feeds that a run's ranker learns from are those of so long. With fewer than `ranker_min_pages` a
    release gets no ranker."""
    cached_feed_users: Annotated[int, Field(ge=0)] = 10_000
    """Recently active users whose feeds are computed in advance, for when Triton is gone."""
    cached_feed_size: Annotated[int, Field(ge=1, le=1000)] = 100
    """Videos in each of them."""
    cached_feed_ttl_s: Seconds = 3 * 3600.0
    """How long they are kept."""

    @model_validator(mode="after")
    def _rising_is_shorter(self) -> "Settings":
        if self.rising_half_life_s >= self.trending_half_life_s:
            raise ValueError("rising_half_life_s must be shorter than trending_half_life_s")
        return self

    @model_validator(mode="after")
    def _limit_has_room(self) -> "Settings":
        if self.concurrency_limit_min > self.concurrency_limit_max:
            raise ValueError("concurrency_limit_min must not be above concurrency_limit_max")
        return self

    @model_validator(mode="after")
    def _milvus_has_a_url(self) -> "Settings":
        if self.index_kind == "milvus" and self.milvus_url is None:
            raise ValueError("index_kind milvus needs milvus_url")
        return self

    @model_validator(mode="after")
    def _default_media(self) -> "Settings":
        if not self.media_url:
            object.__setattr__(self, "media_url", str(self.data_dir.absolute() / "media"))
        return self

    @model_validator(mode="after")
    def _default_database(self) -> "Settings":
        if not self.database_url:
            path = self.data_dir.absolute() / "keek.db"
            object.__setattr__(self, "database_url", f"sqlite+aiosqlite:///{path}")
        return self

    @property
    def release_dir(self) -> Path:
        """Holds one folder a release: its manifest, index and mapped arrays."""
        return self.data_dir / "releases"
