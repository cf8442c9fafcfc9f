"""One model."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class Order(models.Model):
    """What somebody has ordered."""

    customer = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    text = models.CharField(max_length=100)
    views = models.IntegerField(default=0)

    def __str__(self) -> str:
        return self.text
