"""What gunicorn serves: gunicorn wsgi:app"""

from app import create_app
from rill.settings import read_settings

app = create_app(read_settings())
