from tests.postgres.engines import database, make_queue

__all__ = ["database", "make_queue"]
