"""Activation functions."""

# ruff: noqa: A002, N802  # the specification's names

from __future__ import annotations

import math

import numpy as np

from tests.webnn.oracle.precision import Array, in_double


@in_double
def elu(input: Array, *, alpha: float = 1.0) -> Array:
    return np.maximum(0, input) + alpha * np.expm1(np.minimum(0, input))


@in_double
def gelu(input: Array) -> Array:
    erfc = np.vectorize(math.erfc, otypes=[np.float64])
    return 0.5 * input * erfc(-input / math.sqrt(2))


@in_double
def hardSigmoid(input: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Array:
    return np.maximum(0, np.minimum(1, alpha * input + beta))


@in_double
def hardSwish(input: Array) -> Array:
    return input * np.maximum(0, np.minimum(6, input + 3)) / 6


@in_double
def leakyRelu(input: Array, *, alpha: float = 0.01) -> Array:
    return np.maximum(0, input) + alpha * np.minimum(0, input)


@in_double
def linear(input: Array, *, alpha: float = 1.0, beta: float = 0.0) -> Array:
    return alpha * input + beta


@in_double
def prelu(input: Array, slope: Array) -> Array:
    zero = input.dtype.type(0)
    return np.maximum(zero, input) + slope * np.minimum(zero, input)


@in_double
def relu(input: Array) -> Array:
    return np.maximum(input.dtype.type(0), input)


@in_double
def sigmoid(input: Array) -> Array:
    return 1 / (1 + np.exp(-input))


@in_double
def softmax(input: Array, axis: int) -> Array:
    powers = np.exp(input - input.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


@in_double
def softplus(input: Array) -> Array:
    return np.logaddexp(0, input)


@in_double
def softsign(input: Array) -> Array:
    return input / (1 + np.abs(input))


@in_double
def tanh(input: Array) -> Array:
    return np.tanh(input)
