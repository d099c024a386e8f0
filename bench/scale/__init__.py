"""How the service scales: a discrete-event simulation of several servers, and the arithmetic of docs/scale.md."""
