"""Views that are sound, and views that break under lag."""

from __future__ import annotations

from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.urls import path
from orders.models import Order

from django_replica_router import use_primary


def show(orders: object) -> HttpResponse:
    """Return a page of orders."""
    return HttpResponse(", ".join(f"{order.text} ({order.views})" for order in orders))


def mine(request: HttpRequest) -> HttpResponse:
    """Show a user's own orders; a POST adds one."""
    if request.method == "POST":
        Order.objects.create(customer=request.user, text=request.POST["text"])
        return redirect("/orders/")
    return show(Order.objects.filter(customer=request.user))


def named(request: HttpRequest) -> HttpResponse:
    """Show all orders from a replica that is named by hand."""
    return show(Order.objects.using("replica1").order_by("pk"))


def count_view(request: HttpRequest) -> HttpResponse:
    """Count a visit by what a replica may have shown."""
    order = Order.objects.get()
    order.views += 1
    order.save()
    return HttpResponse()


def left(request: HttpRequest) -> HttpResponse:
    """Make a queryset in use_primary, and evaluate it outside."""
    with use_primary():
        orders = Order.objects.filter(text="tea")
    return show(orders)


urlpatterns = [
    path("orders/", mine),
    path("named/", named),
    path("count/", count_view),
    path("left/", left),
]
