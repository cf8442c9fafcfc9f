"""The shop window: three routings side by side on a cluster that the visitor can break."""

from __future__ import annotations
