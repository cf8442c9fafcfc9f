"""Smoke."""
from __future__ import annotations
from django.test import Client
from django.contrib.auth.models import User
from testproject.notes.models import Note

def test_login_under_lag(lagging, served):
    """Login."""
    User.objects.create_user("ann", password="pw")
    client = Client()
    r = client.post("/login/", {"username": "ann", "password": "pw"})
    assert r.status_code == 302
    served.clear()
    r = client.get("/")
    assert r.status_code == 200, r
    assert served.only_primary(), served.statements

def test_reads_go_to_replica(cluster, served):
    """Reads."""
    User.objects.create_user("ann", password="pw")
    client = Client()
    r = client.post("/login/", {"username": "ann", "password": "pw"})
    cluster.wait_caught_up()
    served.clear()
    r = client.get("/")
    assert r.status_code == 200, r
    assert served.only_replicas(), served.statements
