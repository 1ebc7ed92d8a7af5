"""The leak audit: does training see what it could not know? Entry point: `audit_dataset`."""

from app.datasets.audit.audit import audit_dataset
from app.datasets.audit.findings import Finding

__all__ = ["Finding", "audit_dataset"]
