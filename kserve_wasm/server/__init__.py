"""The server: KServe's, with this project's models, protocols and life cycle in it."""
