{{- define "sie.name" -}}
{{- if .Values.nameOverride }}{{ .Values.nameOverride }}
{{- else if contains .Chart.Name .Release.Name }}{{ .Release.Name }}
{{- else }}{{ .Release.Name }}-{{ .Chart.Name }}
{{- end }}
{{- end }}

{{/* The labels that select pods. They never change: a Deployment's selector is immutable. */}}
{{- define "sie.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sie.labels" -}}
{{ include "sie.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "sie.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end }}
{{- end }}
{{- end }}

{{- define "sie.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "sie.name" .) }}
{{- end }}

{{/* Host and port of the Service, inside the namespace. */}}
{{- define "sie.service" -}}
{{ if eq .Values.mode "ray" }}{{ include "sie.name" . }}-serve-svc{{ else }}{{ include "sie.name" . }}{{ end }}
{{- end }}

{{- define "sie.servicePort" -}}
{{ if eq .Values.mode "ray" }}8000{{ else }}{{ .Values.service.port }}{{ end }}
{{- end }}

{{- define "sie.containerPort" -}}
{{ if eq .Values.mode "ray" }}8000{{ else }}8080{{ end }}
{{- end }}

{{/* The server's configuration with the options that the chart sets, as JSON. */}}
{{- define "sie.config" -}}
{{- $config := deepCopy .Values.config }}
{{- if or .Values.models.volume .Values.models.claim }}{{ $_ := set $config "models_dir" "/models" }}{{ end }}
{{- if .Values.keys.existingSecret }}{{ $_ := set $config "api_keys_file" "/etc/sie/keys/keys.toml" }}{{ end }}
{{- if eq .Values.mode "plain" }}
{{- $_ := set $config "host" "0.0.0.0" }}
{{- $_ := set $config "port" 8080 }}
{{- else }}
{{- $_ := set $config "cluster" (merge (include "sie.cluster" . | fromJson) ($config.cluster | default dict)) }}
{{- end }}
{{- toJson $config }}
{{- end }}

{{/* The part of the configuration that pools, ray.ingress and autoscaling say: replicas of Ray, not pods. */}}
{{- define "sie.cluster" -}}
{{- $scaled := eq .Values.autoscaling.kind "ray" }}
{{- $pools := dict }}
{{- range .Values.pools }}
{{- $gpus := include "sie.gpus" . | int }}
{{- $pool := dict "min_replicas" .replicas "max_replicas" .replicas }}
{{- if $scaled }}{{ $pool = dict "min_replicas" .minReplicas "max_replicas" .maxReplicas }}{{ end }}
{{- if $gpus }}
{{- range $key, $count := $pool }}{{ $_ := set $pool $key (mul $count $gpus) }}{{ end }}
{{- $_ := set $pool "gpus" 1 }}
{{- else }}
{{- $_ := set $pool "cpus" (include "sie.cores" . | int) }}
{{- end }}
{{- with .accelerator }}{{ $_ := set $pool "accelerator" . }}{{ end }}
{{- with .models }}{{ $_ := set $pool "models" . }}{{ end }}
{{- $_ := set $pools .name $pool }}
{{- end }}
{{- $cluster := dict "pools" $pools "ingress_replicas" (mul .Values.ray.ingress.replicas .Values.ray.ingress.processes) }}
{{- if $scaled }}
{{- $_ := set $cluster "queue_target_s" .Values.autoscaling.queueSeconds }}
{{- $_ := set $cluster "downscale_delay_s" .Values.autoscaling.scaleDownS }}
{{- end }}
{{- toJson $cluster }}
{{- end }}

{{/* GPUs in the limits of a pool, of any kind that NVIDIA's device plugin offers. */}}
{{- define "sie.gpus" -}}
{{- $gpus := 0 }}
{{- range $resource, $count := .resources.limits }}{{ if hasPrefix "nvidia.com/" $resource }}{{ $gpus = add $gpus (int $count) }}{{ end }}{{ end }}
{{- $gpus }}
{{- end }}

{{/* Whole cores of a pod, as KubeRay counts them for Ray, less one for the other processes of the node. */}}
{{- define "sie.cores" -}}
{{- $cpu := .resources.limits.cpu | default .resources.requests.cpu | toString }}
{{- $whole := hasSuffix "m" $cpu | ternary (div (trimSuffix "m" $cpu | int) 1000) (float64 $cpu | floor | int) | int }}
{{- max 1 (sub $whole 1) }}
{{- end }}

{{/* A map as TOML. Numbers of a values file are floats in templates, and an option that counts takes no float. */}}
{{- define "sie.toml" -}}
{{- range $key, $value := . }}
{{- if kindIs "float64" $value }}
{{ $key }} = {{ if eq $value (floor $value) }}{{ $value | int64 }}{{ else }}{{ $value }}{{ end }}
{{- else }}
{{ $key }} = {{ $value | toJson }}
{{- end }}
{{- end }}
{{- end }}

{{/* Seconds that a pod may take to stop: the balancers' time, the drain, and some for the rest. */}}
{{- define "sie.grace" -}}
{{- add (int .Values.rollout.preStopS) (ceil (.Values.config.drain_s | default 60) | int) 15 }}
{{- end }}
