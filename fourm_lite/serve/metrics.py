"""What the server counts, in the words of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server.

    Args:
        waiting: how many requests are being read, wait or are answered
        rows: how many rows the index has
    """

    def __init__(self, waiting: Callable[[], int], rows: Callable[[], int]) -> None:
        from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

        self._registry = CollectorRegistry()
        self._requests = Counter(
            "fourm_requests", "Requests by path and status.", ["path", "status"],
            registry=self._registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "fourm_request_seconds", "From the head of a request to its answer.", ["path"],
            buckets=SECONDS, registry=self._registry,
        )  # fmt: skip
        self._sizes = Histogram(
            "fourm_batch_queries", "Queries answered together.", buckets=SIZES,
            registry=self._registry,
        )  # fmt: skip
        Gauge(
            "fourm_requests_waiting", "Read, waiting or being answered.", registry=self._registry
        ).set_function(waiting)
        Gauge("fourm_index_rows", "Rows of the index.", registry=self._registry).set_function(rows)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """One request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def batch(self, size: int) -> None:
        """Queries that were answered together."""
        self._sizes.observe(size)

    def text(self) -> tuple[bytes, str]:
        """All of it, and its media type."""
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        return generate_latest(self._registry), CONTENT_TYPE_LATEST
