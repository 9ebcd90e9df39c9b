from pika import exceptions as exceptions
from pika import spec as spec
from pika.adapters.blocking_connection import BlockingConnection as BlockingConnection
from pika.adapters.select_connection import SelectConnection as SelectConnection
from pika.connection import ConnectionParameters as ConnectionParameters
from pika.connection import SSLOptions as SSLOptions
from pika.connection import URLParameters as URLParameters
from pika.credentials import PlainCredentials as PlainCredentials
from pika.spec import BasicProperties as BasicProperties

__version__: str
