"""A record of a CLIP, for tests that have no CLIP."""

from keek_server.towers.clip_record import ClipRecord

RECORD = ClipRecord(
    clip_model="small/untrained@0123456789ab",
    model="small",
    pretrained=None,
    untrained=True,
    image_size=32,
    resize_mode="shortest",
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    context_length=6,
    start_token=1,
    end_token=2,
    pad_token=0,
    dynamic_length=True,
)
