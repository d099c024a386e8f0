"""The same service on Ray Serve: ingress replicas answer HTTP, model replicas run the models.

`run.serve` is `sie-server serve --ray`. `app.build` is the application for `serve run` and a RayService. Scheduling,
placement, health checks and scaling are Ray's.
"""

from sie_server.cluster.environment import prepare

prepare()  # before any module of this room imports Ray
