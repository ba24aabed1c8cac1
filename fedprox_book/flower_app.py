"""The app that ``flwr run .`` starts: the library's, with the names of the paper's experiments registered.

Layer: book (network).
"""

from fedprox_lib.flower import apps

# One name per assignment: Flower looks for them in the syntax tree.
server_app = apps.server_app
client_app = apps.client_app
