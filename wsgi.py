"""The application for gunicorn (gunicorn wsgi:app) and for the command line (flask --app wsgi ask)."""

import sys

from app import create_app
from rill.settings import BadSettings, read_settings

try:
    app = create_app(read_settings())
except BadSettings as error:
    sys.exit(f"rill: {error}")
