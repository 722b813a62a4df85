"""A failpoint, for tests only: the MQTT service dies when a report is durable and its broker does not know it yet.

Python imports a file of this name by itself from PYTHONPATH. In the process of the MQTT service, and nowhere else, every
`MQTT_DIES_AT`th acknowledgement is a `kill -9` of itself instead. The product has no such switch.
"""

from __future__ import annotations

import os
import signal
import sys


def _die_before_acknowledging(at: int) -> None:
    from harmonywatch.broker import Session

    honest, counted = Session.ack, 0

    def ack(self: Session, number: int) -> None:
        nonlocal counted
        counted += 1
        if counted == at:
            os.kill(os.getpid(), signal.SIGKILL)
        honest(self, number)

    Session.ack = ack  # type: ignore[method-assign]


if "run" in sys.orig_argv and "mqtt" in sys.orig_argv and "MQTT_DIES_AT" in os.environ:
    _die_before_acknowledging(int(os.environ["MQTT_DIES_AT"]))
