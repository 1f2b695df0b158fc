"""What can go wrong with the store, seen from outside: is it permanent, and whose fault is it?"""


class StoreError(Exception):
    """The store cannot do what was asked; the text is for a person."""


class StoreUnavailable(StoreError):
    """The store is away, busy, or out of memory or disk. The same call may succeed later."""


class DataError(StoreError):
    """The bytes of a segment do not load, today or ever. Its neighbours may."""


class QueryTooLarge(StoreError):
    """A query asks for more rows, bytes or memory than its bound allows. A narrower one may succeed."""


class QueryTimeout(StoreError):
    """A query ran longer than its bound allows. A narrower one may succeed."""


class OutOfMemory(StoreUnavailable):
    """The store has no memory for this now: because others use it, or because this is too large for it in one piece."""
