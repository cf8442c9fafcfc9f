"""URLs of the orders."""

from __future__ import annotations

from django.urls import path

from testproject.orders import views

urlpatterns = [
    path("", views.place, name="order-place"),
    path("demand/", views.demand, name="order-demand"),
    path("<int:pk>/", views.order, name="order"),
    path("<int:pk>/by-key/", views.order_by_key, name="order-by-key"),
    path("<int:pk>/counted/", views.counted_order, name="order-counted"),
    path("<int:pk>/pack/", views.pack, name="order-pack"),
]
