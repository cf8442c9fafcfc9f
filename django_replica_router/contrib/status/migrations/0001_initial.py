"""The model by which the admin lists the page. It has no table."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Creates nothing in the database."""

    initial = True
    dependencies = ()
    operations = (
        migrations.CreateModel(
            name="Replicas",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
            ],
            options={
                "verbose_name": "replicas",
                "verbose_name_plural": "replicas",
                "managed": False,
                "default_permissions": ("view",),
                "base_manager_name": "objects",
                "default_manager_name": "objects",
            },
        ),
    )
