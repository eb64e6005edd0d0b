"""The REST half of the server: the Open Inference Protocol over HTTP.

fast_http.py   a uvicorn protocol that answers POST …/infer before ASGI      ┐
routes.py      the same for ASGI, and the routes that the SDK does not have  ┴▶ infer.py ──▶ model.submit
                                                                                 codec.py      bytes ↔ tensors
                                                                                 compression.py
                                                                                 errors.py     errors → answers
"""
