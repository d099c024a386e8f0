{{/*
Values that fit the schema and contradict each other. All findings are reported at once. Each names the key, the cause
and the next step.
*/}}
{{- define "sie.check" -}}
{{- $found := list }}
{{- range list "sie.checkImage" "sie.checkPools" "sie.checkStorage" "sie.checkNetwork" "sie.checkMode" "sie.checkCluster" }}
{{- $found = concat $found (include . $ | fromJsonArray) }}
{{- end }}
{{- if $found }}
{{- fail (printf "\n\nThe values cannot be used:\n- %s\n" (join "\n- " $found)) }}
{{- end }}
{{- end }}

{{- define "sie.checkImage" -}}
{{- $found := list }}
{{- with .Values }}
{{- if not .image.repository }}{{ $found = append $found "image.repository is empty: name the repository of your image" }}{{ end }}
{{- if not (or .image.tag .image.digest) }}{{ $found = append $found "image.tag and image.digest are empty: set one of them, so that all pods run the same image" }}{{ end }}
{{- if and (eq .image.tag "latest") (not .image.digest) }}{{ $found = append $found "image.tag is latest, which names another image after each build: set a version or image.digest, so that all pods run the same image" }}{{ end }}
{{- if and (not .keys.existingSecret) (not .keys.open) }}{{ $found = append $found "keys.existingSecret is empty: create a Secret with a file of API keys, or set keys.open: true to serve every caller" }}{{ end }}
{{- if and .keys.existingSecret .keys.open }}{{ $found = append $found "keys.open is true, but keys.existingSecret is set: remove one of them" }}{{ end }}
{{- end }}
{{- $longest := eq .Values.mode "ray" | ternary 47 42 }}
{{- if gt (len (include "sie.name" .)) $longest }}{{ $found = append $found (printf "nameOverride: the name %s is longer than %d characters, which names derived from it need: set a shorter one" (include "sie.name" .) $longest) }}{{ end }}
{{- toJson $found }}
{{- end }}

{{- define "sie.checkPools" -}}
{{- $found := list }}
{{- $scaled := ne .Values.autoscaling.kind "none" }}
{{- $names := eq .Values.mode "ray" | ternary (list "head" "ingress") list }}
{{- range $i, $pool := .Values.pools }}
{{- $at := printf "pools[%d] (%s)" $i $pool.name }}
{{- if has $pool.name $names }}{{ $found = append $found (printf "%s: the name is already that of another pool, or of Ray's head or ingress: choose another one" $at) }}{{ end }}
{{- $names = append $names $pool.name }}
{{- $found = concat $found (include "sie.checkReplicas" (dict "at" $at "pool" $pool "scaled" $scaled "root" $) | fromJsonArray) }}
{{- $gpus := include "sie.gpus" $pool }}
{{- if and (eq $pool.device "cuda") (eq (int $gpus) 0) }}{{ $found = append $found (printf "%s: device is cuda, but resources.limits has no nvidia.com/gpu: add nvidia.com/gpu: 1" $at) }}{{ end }}
{{- if and (eq $pool.device "cpu") (gt (int $gpus) 0) }}{{ $found = append $found (printf "%s: device is cpu, but resources.limits has a GPU, which would stay idle: set device: cuda, or remove it" $at) }}{{ end }}
{{- if and (eq $.Values.mode "ray") (eq $pool.device "cpu") (le (include "sie.cores" $pool | int) (add 1 (include "sie.cores" $.Values.ray.ingress) | int)) }}{{ $found = append $found (printf "%s: a replica of this pool would fit an ingress pod, whose memory is too small for models: give the pool at least two cores more than ray.ingress" $at) }}{{ end }}
{{- if eq $.Values.mode "plain" }}
{{- range $key := list "accelerator" "models" }}{{ if hasKey $pool $key }}{{ $found = append $found (printf "%s: %s needs mode: ray: with mode: plain all pools serve the same models" $at $key) }}{{ end }}{{ end }}
{{- end }}
{{- if and (eq $.Values.mode "plain") (gt (int $gpus) 1) }}{{ $found = append $found (printf "%s: resources.limits has %d GPUs, but a server uses one: set nvidia.com/gpu: 1 and more replicas" $at (int $gpus)) }}{{ end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* Arguments: at (where), pool, scaled, root. */}}
{{- define "sie.checkReplicas" -}}
{{- $found := list }}
{{- if .scaled }}
{{- if not (and (hasKey .pool "minReplicas") (hasKey .pool "maxReplicas")) }}{{ $found = append $found (printf "%s: autoscaling.kind is %s, so minReplicas and maxReplicas are required" .at .root.Values.autoscaling.kind) }}
{{- else if gt (int .pool.minReplicas) (int .pool.maxReplicas) }}{{ $found = append $found (printf "%s: minReplicas (%d) is larger than maxReplicas (%d)" .at (int .pool.minReplicas) (int .pool.maxReplicas)) }}
{{- else if and (eq (int .pool.minReplicas) 0) (eq .root.Values.autoscaling.kind "hpa") }}{{ $found = append $found (printf "%s: minReplicas is 0, but no pod is left that exports the HPA's metrics: set 1, or use autoscaling.kind: keda" .at) }}
{{- else if and (eq (int .pool.minReplicas) 0) (eq .root.Values.autoscaling.kind "keda") (not .root.Values.autoscaling.keda.wakeQuery) }}{{ $found = append $found (printf "%s: minReplicas is 0, so autoscaling.keda.wakeQuery must count the requests that arrive at the gateway while no pod runs" .at) }}
{{- end }}
{{- else if not (hasKey .pool "replicas") }}{{ $found = append $found (printf "%s: autoscaling.kind is none, so replicas is required" .at) }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{- define "sie.checkStorage" -}}
{{- $found := list }}
{{- range $name := list "cache" "models" }}
{{- $storage := index $.Values $name }}
{{- if and $storage.volume $storage.claim }}{{ $found = append $found (printf "%s: volume and claim are both set: keep one of them" $name) }}{{ end }}
{{- if eq (($storage.claim).accessMode | default "") "ReadWriteOnce" }}{{ $found = append $found (printf "%s.claim.accessMode is ReadWriteOnce: a rolling update mounts the claim in two pods, which may be on two nodes; use a storage class with ReadWriteMany" $name) }}{{ end }}
{{- end }}
{{- if and (eq .Values.mode "ray") (not (or .Values.models.volume .Values.models.claim)) }}{{ $found = append $found "models: mode is ray, so a volume or claim with ReadWriteMany is required: all replicas follow the state in it" }}{{ end }}
{{- if and (eq .Values.mode "ray") .Values.models.readOnly }}{{ $found = append $found "models.readOnly is true, but with mode: ray admin calls write the state of the cluster to it: set it to false" }}{{ end }}
{{- if and (eq .Values.mode "ray") (eq ((.Values.models.claim).accessMode | default "") "ReadOnlyMany") }}{{ $found = append $found "models.claim.accessMode is ReadOnlyMany, but with mode: ray admin calls write to it: use ReadWriteMany" }}{{ end }}
{{- toJson $found }}
{{- end }}

{{- define "sie.checkNetwork" -}}
{{- $found := list }}
{{- $egress := .Values.networkPolicy.egress }}
{{- if eq (.Values.config.offline | default false) true }}
{{- if $egress.hub }}{{ $found = append $found "networkPolicy.egress.hub names CIDRs, but config.offline is true, so the server never contacts the hub: remove one of them" }}{{ end }}
{{- if or .Values.hub.endpoint .Values.hub.tokenSecret }}{{ $found = append $found "hub.endpoint or hub.tokenSecret is set, but config.offline is true, so the server never contacts the hub: remove one of them" }}{{ end }}
{{- else if and .Values.networkPolicy.enabled (not $egress.hub) }}{{ $found = append $found "config.offline is false, but networkPolicy.egress.hub names no CIDR, so every download would time out: name the CIDR of your mirror or of an egress proxy (a policy cannot name a host), or set config.offline: true" }}
{{- end }}
{{- if and .Values.networkPolicy.enabled .Values.tracing.endpoint (not $egress.telemetry) }}{{ $found = append $found "tracing.endpoint is set, but networkPolicy.egress.telemetry names no CIDR, so no trace would arrive: name the address of the collector" }}{{ end }}
{{- if and $egress.telemetry (not .Values.tracing.endpoint) }}{{ $found = append $found "networkPolicy.egress.telemetry names CIDRs, but tracing.endpoint is empty, so nothing is sent there: remove one of them" }}{{ end }}
{{- if .Values.ingress.enabled }}
{{- range $key := list "className" "host" }}{{ if not (index $.Values.ingress $key) }}{{ $found = append $found (printf "ingress.%s is empty, but ingress.enabled is true" $key) }}{{ end }}{{ end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{- define "sie.checkMode" -}}
{{- $found := list }}
{{- $kind := .Values.autoscaling.kind }}
{{- if eq .Values.mode "ray" }}
{{- if has $kind (list "hpa" "keda") }}{{ $found = append $found (printf "autoscaling.kind is %s, but with mode: ray Ray itself scales: use ray or none" $kind) }}{{ end }}
{{- if not .Values.ray.redis.address }}{{ $found = append $found "ray.redis.address is empty: without Redis the cluster forgets its state when the head restarts" }}{{ end }}
{{- $names := list }}{{ range .Values.pools }}{{ $names = append $names .name }}{{ end }}
{{- if ne (join " " $names) (sortAlpha $names | join " ") }}{{ $found = append $found (printf "pools: the order is %s, but KubeRay sorts pools by name, and the first one without models serves all models that no pool names: sort the list by name, and rename pools if another one should be the first" (join ", " $names)) }}{{ end }}
{{- $least := add (int .Values.rollout.preStopS) (ceil (.Values.config.drain_s | default 60) | int) }}
{{- if le (int .Values.ray.graceS) (int $least) }}{{ $found = append $found (printf "ray.graceS is %d, but pods need more than rollout.preStopS and config.drain_s (%d) to stop" (int .Values.ray.graceS) (int $least)) }}{{ end }}
{{- if .Values.keys.open }}{{ $found = append $found "keys.open is true, but with mode: ray the proxies make every caller look local, so keys with an admin key are required: set keys.existingSecret" }}{{ end }}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.egress.redis) }}{{ $found = append $found "networkPolicy.egress.redis names no CIDR, so the head cannot reach ray.redis.address" }}{{ end }}
{{- if and .Values.networkPolicy.enabled (eq $kind "ray") (not .Values.networkPolicy.egress.kubernetesApi) }}{{ $found = append $found "networkPolicy.egress.kubernetesApi names no CIDR, but autoscaling.kind is ray: the autoscaler next to the head changes the number of pods through the API" }}{{ end }}
{{- else }}
{{- if .Values.config.cluster }}{{ $found = append $found "config.cluster needs mode: ray: a single server has no cluster" }}{{ end }}
{{- if eq $kind "ray" }}{{ $found = append $found "autoscaling.kind is ray, but mode is plain: use hpa, keda or none" }}{{ end }}
{{- if and (eq $kind "keda") (not .Values.autoscaling.keda.serverAddress) }}{{ $found = append $found "autoscaling.keda.serverAddress is empty, but autoscaling.kind is keda: name your Prometheus" }}{{ end }}
{{- if and (eq (int .Values.rollout.maxSurge) 0) (eq (int .Values.rollout.maxUnavailable) 0) }}{{ $found = append $found "rollout.maxSurge and rollout.maxUnavailable are both 0, so no pod could be replaced: set one of them to 1" }}{{ end }}
{{- end }}
{{- toJson $found }}
{{- end }}
