"""What can go wrong with files, each as one line with its remedy."""


class StorageError(RuntimeError):
    """The disk refused: full, unwritable, or holding something unexpected."""


class AddressError(StorageError):
    """What was given as a storage, a cache or the place of a model cannot be used as one."""


class DamagedEntryError(StorageError):
    """Bytes on disk that are not those that were written; `key` names what has to be computed again."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class StoredValueError(StorageError):
    """A stored value is not of the type that this program writes; the message names where it stands."""


class LeaseLostError(StorageError):
    """Another process took over the computation because this one showed no sign of life for too long."""


class ChangedFileError(StorageError):
    """A file that is in use was written to: what is read from it now is not what was read before."""
