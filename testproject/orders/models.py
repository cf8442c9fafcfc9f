"""The models: an order, and its lines."""

from __future__ import annotations

from django.conf import settings
from django.db import models


class Order(models.Model):
    """What one customer has ordered at once."""

    customer = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="orders"
    )
    state = models.CharField(max_length=10, default="placed")
    looks = models.PositiveIntegerField(default=0)

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return f"Order {self.pk}, {self.state}"


class Line(models.Model):
    """So many of one product."""

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    product = models.CharField(max_length=50)
    quantity = models.PositiveIntegerField()

    class Meta:
        ordering = ("pk",)

    def __str__(self) -> str:
        return f"{self.quantity} x {self.product}"
