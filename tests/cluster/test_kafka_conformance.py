"""The suites of `tests/stream` on a real broker, as they stand; `conftest.DIFFERENCES` is all that Kafka does otherwise.

Of the loop's suite come the tests that wait; the others turn it by hand and look at once, which no broker promises.
"""

from __future__ import annotations

from test_stream_conformance import *  # noqa: F403
from test_stream_follow import (  # noqa: F401
    test_only_what_is_settled_is_committed_and_a_stop_finishes,
    test_the_handlers_truth_decides_where_the_loop_begins,
)
