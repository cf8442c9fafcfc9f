"""A site that costs as little as possible beside its routing, and users who know what they must see."""

from __future__ import annotations
