"""A worker in a process of its own, `kafka_follower.py URL GROUP MEMBER SESSION_S`: tells each partition and record it gets."""

from __future__ import annotations

import sys

from harmonywatch.settings import StreamSettings
from harmonywatch.stream.contract import PartitionsMoved
from harmonywatch.stream.kafka.address import parse
from harmonywatch.stream.kafka.stream import KafkaStream


def main() -> None:
    url, group, member, session_s = sys.argv[1:]
    stream = KafkaStream(parse(url, "", {}), StreamSettings(replicas=1, member=member, session_s=float(session_s)))
    reader = stream.reader("reports.", group=group)
    sys.stdout.write("ready\n")
    while True:
        try:
            for batch in reader.poll(0.1):
                for value in batch.values:
                    sys.stdout.write(f"{batch.partition} {value.decode()}\n")
        except PartitionsMoved as moved:
            reader.take_up(moved.topics)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
