"""The spine on Apache Kafka: one topic a topic, one record a record, consumer groups for the durable readers.

`stream.py` is the adapter, `reader.py` follows topics, `client.py` alone knows the client library, `address.py` reads where
and how to connect. What differs from the embedded stream, each a strict expected failure in `tests/cluster`:

- an append over several partitions is not atomic: if the brokers fail in its middle some of its records stay, and
  `OutcomeUnknown` is raised. Whoever sends again repeats them, and repeats are recognised (ADR 0013).
- retention goes by age alone; a position that it overtook is `PositionLost`, never skipped. So the gateway turns away
  before that (its readiness looks at the archive's lag).
- a partition has one owner in a group, so a position is committed by its owner only; who lost it commits nothing.
- times of records are the broker's, to the millisecond.
"""
