{{/* What all pods share. */}}

{{- define "sie.podSecurity" -}}
enableServiceLinks: false # a Service named sie would set SIE_PORT and others
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{- define "sie.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Node selector, tolerations, affinity and spread of a pool. Arguments: root, pool, selector (labels of its pods). */}}
{{- define "sie.placement" -}}
{{- with .pool.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := .pool.tolerations | default list }}
{{- if eq (.pool.device | default "cpu") "cuda" }}
{{- $tolerations = append $tolerations (dict "key" "nvidia.com/gpu" "operator" "Exists" "effect" "NoSchedule") }}
{{- end }}
{{- with $tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .pool.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- range list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- $.selector | nindent 8 }}
  {{- end }}
{{- end }}

{{- define "sie.env" -}}
- {name: HOME, value: /home/sie}
- {name: HF_HOME, value: /cache}
- {name: HF_HUB_DISABLE_TELEMETRY, value: "1"}
- {name: DO_NOT_TRACK, value: "1"}
{{- if .Values.tracing.endpoint }}
- {name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ .Values.tracing.endpoint | quote }}}
- {name: OTEL_TRACES_SAMPLER, value: parentbased_traceidratio}
- {name: OTEL_TRACES_SAMPLER_ARG, value: {{ .Values.tracing.ratio | quote }}}
{{- end }}
{{- with .Values.hub.endpoint }}
- {name: HF_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with .Values.hub.tokenSecret }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ .key }}}
{{- end }}
{{- end }}

{{- define "sie.mounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: home, mountPath: /home/sie}
- {name: shm, mountPath: /dev/shm}
- {name: cache, mountPath: /cache}
{{- if or .Values.models.volume .Values.models.claim }}
- {name: models, mountPath: /models, readOnly: {{ and .Values.models.readOnly (eq .Values.mode "plain") }}}
{{- end }}
{{- if .Values.keys.existingSecret }}
- {name: keys, mountPath: /etc/sie/keys, readOnly: true}
{{- end }}
{{- end }}

{{- define "sie.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 10Gi}
- name: home
  emptyDir: {sizeLimit: 1Gi}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ eq .Values.mode "ray" | ternary .Values.ray.sharedMemory "64Mi" }}}
- name: cache
  {{- include "sie.volume" (dict "name" (printf "%s-cache" (include "sie.name" .)) "storage" .Values.cache) | trim | nindent 2 }}
{{- if or .Values.models.volume .Values.models.claim }}
- name: models
  {{- include "sie.volume" (dict "name" (printf "%s-models" (include "sie.name" .)) "storage" .Values.models) | trim | nindent 2 }}
{{- end }}
{{- with .Values.keys.existingSecret }}
- name: keys
  secret:
    secretName: {{ . }}
    defaultMode: 0440
    items:
      - {key: {{ $.Values.keys.file | quote }}, path: keys.toml}
{{- end }}
{{- end }}

{{/* The source of a volume. Arguments: name (of a claim that the chart creates), storage (cache or models). */}}
{{- define "sie.volume" -}}
{{- if .storage.claim }}
persistentVolumeClaim: {claimName: {{ .name }}}
{{- else if .storage.volume }}
{{- toYaml .storage.volume }}
{{- else }}
emptyDir: {sizeLimit: {{ .storage.emptyDirSize }}}
{{- end }}
{{- end }}
