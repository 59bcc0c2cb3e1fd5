"""Event ids that data without any gets."""

from uuid import RFC_4122

from keek_training.datasets.event_ids import event_ids

EVENT = ("u1", "v1", 1, 1_700_000_000_000_000)


def test_the_same_events_get_the_same_ids() -> None:
    events = [EVENT, ("u2", "v1", 1, EVENT[3])]
    assert list(event_ids(events)) == list(event_ids(events))


def test_every_part_of_an_event_makes_another_id() -> None:
    events = [
        EVENT,
        ("u2", "v1", 1, EVENT[3]),
        ("u1", "v2", 1, EVENT[3]),
        ("u1", "v1", 2, EVENT[3]),
        ("u1v", "1", 1, EVENT[3]),
        ("u1", "v1", 1, EVENT[3] + 1),
    ]
    assert len(set(event_ids(events))) == len(events)


def test_equal_events_are_told_apart_by_their_number() -> None:
    other = ("u2", "v1", 1, EVENT[3])
    ids = list(event_ids([EVENT, other, EVENT, EVENT]))
    assert len(set(ids)) == 4
    # Which of them come between is all the same.
    assert list(event_ids([EVENT, EVENT, other, EVENT]))[1] == ids[2]


def test_ids_are_uuids_in_the_order_of_time() -> None:
    ids = list(event_ids(("u1", "v1", 1, time_us) for time_us in range(0, 10**15, 10**13)))
    assert ids == sorted(ids)
    assert {(event_id.version, event_id.variant) for event_id in ids} == {(7, RFC_4122)}
