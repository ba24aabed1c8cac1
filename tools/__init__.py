"""How the book is built and checked. `make help` lists the commands that start these modules."""
