"""The service without the relay, so that every read takes the general path: `gunicorn --pythonpath` finds it first."""

from app import create_app
from rill.settings import read_settings

app = create_app(read_settings(), relays=False)
