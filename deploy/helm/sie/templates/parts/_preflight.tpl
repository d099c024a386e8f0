{{/*
Checks against the cluster. Without one (`helm template`, many GitOps tools) lookups find nothing, not even an empty list,
and the checks are skipped. Helm itself keeps its releases in Secrets, so its user may list them.
*/}}
{{- define "sie.checkCluster" -}}
{{- $found := list }}
{{- $secrets := .Values.preflight | ternary (lookup "v1" "Secret" .Release.Namespace "") dict }}
{{- if hasKey $secrets "items" }}
{{- range (include "sie.secrets" . | fromJsonArray) }}
{{- $wanted := . }}
{{- $keys := dict }}
{{- range $secrets.items }}{{ if eq .metadata.name $wanted.name }}{{ $keys = set $keys "of" (.data | default dict | keys | sortAlpha) }}{{ end }}{{ end }}
{{- if not (hasKey $keys "of") }}{{ $found = append $found (printf "%s: the namespace %s has no Secret %s: create it first" $wanted.value $.Release.Namespace $wanted.name) }}
{{- else if not (has $wanted.key $keys.of) }}{{ $found = append $found (printf "%s: the Secret %s has no key %s; it has: %s" $wanted.value $wanted.name $wanted.key (join ", " $keys.of)) }}
{{- end }}
{{- end }}
{{- range $name := list "cache" "models" }}
{{- $found = concat $found (include "sie.checkClaim" (dict "root" $ "at" $name "storage" (index $.Values $name)) | fromJsonArray) }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}

{{/* All Secrets that pods need: name, key, and the value that names them. */}}
{{- define "sie.secrets" -}}
{{- $wanted := list }}
{{- with .Values.keys }}{{ if .existingSecret }}{{ $wanted = append $wanted (dict "value" "keys.existingSecret" "name" .existingSecret "key" .file) }}{{ end }}{{ end }}
{{- with .Values.hub.tokenSecret }}{{ $wanted = append $wanted (merge (dict "value" "hub.tokenSecret") .) }}{{ end }}
{{- with .Values.tests.keySecret }}{{ $wanted = append $wanted (merge (dict "value" "tests.keySecret") .) }}{{ end }}
{{- range .Values.image.pullSecrets }}{{ $wanted = append $wanted (dict "value" "image.pullSecrets" "name" . "key" ".dockerconfigjson") }}{{ end }}
{{- if eq .Values.mode "ray" }}
{{- with .Values.ray.redis.passwordSecret }}{{ $wanted = append $wanted (merge (dict "value" "ray.redis.passwordSecret") .) }}{{ end }}
{{- with .Values.ray.authSecret }}{{ $wanted = append $wanted (dict "value" "ray.authSecret" "name" . "key" "auth_token") }}{{ end }}
{{- end }}
{{- toJson $wanted }}
{{- end }}

{{/* A claim that must exist, or the immutable fields of one that the chart has created. Arguments: root, at, storage. */}}
{{- define "sie.checkClaim" -}}
{{- $found := list }}
{{- $space := .root.Release.Namespace }}
{{- with ((.storage.volume).persistentVolumeClaim).claimName }}
{{- if not (lookup "v1" "PersistentVolumeClaim" $space .) }}{{ $found = append $found (printf "%s.volume: the namespace %s has no PersistentVolumeClaim %s: create it first" $.at $space .) }}{{ end }}
{{- end }}
{{- with .storage.claim }}
{{- $name := printf "%s-%s" (include "sie.name" $.root) $.at }}
{{- $old := lookup "v1" "PersistentVolumeClaim" $space $name }}
{{- if $old }}
{{- $advice := printf "cannot change in the existing claim %s: create another claim, copy the models, and name it in %s.volume" $name $.at }}
{{- $class := .storageClassName | default $old.spec.storageClassName }}
{{- if ne $class $old.spec.storageClassName }}{{ $found = append $found (printf "%s.claim.storageClassName (%s, now %s) %s" $.at $old.spec.storageClassName $class $advice) }}{{ end }}
{{- $mode := .accessMode | default "ReadWriteMany" }}
{{- if not (has $mode $old.spec.accessModes) }}{{ $found = append $found (printf "%s.claim.accessMode (%s, now %s) %s" $.at (first $old.spec.accessModes) $mode $advice) }}{{ end }}
{{- end }}
{{- end }}
{{- toJson $found }}
{{- end }}
