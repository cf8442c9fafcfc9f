"""``django.tasks``, and its backport: ``"django_replica_router.contrib.django_tasks"`` in ``INSTALLED_APPS``."""
