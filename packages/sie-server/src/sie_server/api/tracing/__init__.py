"""Traces for OpenTelemetry: a span per request, and one per step of ARCHITECTURE.md below it. Off by default."""
