"""What can be wrong with raw trades, or with what was asked of them: each by its own name."""

from __future__ import annotations

from app.errors import InvalidData, ServiceError


class InvalidBuildOption(ServiceError):
    """A build option is out of range, or contradicts another."""

    status, code = 422, "invalid_build_option"


class NoTradeFiles(InvalidData):
    """There is no trade file here."""

    code = "no_trade_files"


class UnreadableTrades(InvalidData):
    """A trade file cannot be read: damaged, truncated, or not what its name says."""

    code = "trades_unreadable"


class MissingColumn(InvalidData):
    """A trade file lacks a column that is needed."""

    code = "missing_column"


class MissingValue(InvalidData):
    """A trade has no value where one is needed."""

    code = "missing_value"


class BadTimestamp(InvalidData):
    """A timestamp cannot be understood."""

    code = "bad_timestamp"


class BadTrade(InvalidData):
    """A price or volume is zero, negative, not finite, or not a number."""

    code = "bad_trade"


class UnknownSide(InvalidData):
    """An aggressor side is neither buy nor sell."""

    code = "unknown_side"


class UnsortedTrades(InvalidData):
    """A trade is earlier than the one before it in its file."""

    code = "not_chronological"


class OverlappingFiles(InvalidData):
    """Two trade files cover the same time."""

    code = "trade_files_overlap"


class NoTrades(InvalidData):
    """A trade file holds no trade."""

    code = "no_trades"


class TooFewBars(InvalidData):
    """The trades make too few bars for a single label."""

    code = "too_few_bars"


class LevelSizeUnknown(InvalidData):
    """The price increment cannot be told from the trades."""

    code = "level_size_unknown"


class TargetExists(ServiceError):
    """Something is already where the dataset should go."""

    status, code = 409, "target_exists"


class CannotWrite(ServiceError):
    """The dataset cannot be written."""

    status, code = 507, "cannot_write"
