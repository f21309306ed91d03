"""A server of objects on this machine."""

from tiny_store import s3 as s3
