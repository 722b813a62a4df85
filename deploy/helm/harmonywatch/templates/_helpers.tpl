{{- define "harmonywatch.labels" -}}
app.kubernetes.io/name: harmonywatch
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "harmonywatch.stream" -}}
{{- if .Values.streamUrl }}{{ .Values.streamUrl }}{{ else -}}
kafka://{{ .Release.Name }}-kafka-0.{{ .Release.Name }}-kafka:9092,{{ .Release.Name }}-kafka-1.{{ .Release.Name }}-kafka:9092,{{ .Release.Name }}-kafka-2.{{ .Release.Name }}-kafka:9092
{{- end }}
{{- end -}}

{{- define "harmonywatch.environment" -}}
{{- $engines := printf "%s-engines" .Release.Name -}}
- {name: HARMONYWATCH_DATA, value: /data}
- {name: HARMONYWATCH_KEYS, value: /keys}
- {name: HARMONYWATCH_STREAM__URL, value: {{ include "harmonywatch.stream" . | quote }}}
- {name: HARMONYWATCH_LAKE, value: {{ .Values.lakeUrl | quote }}}
- name: HARMONYWATCH_STATE
  valueFrom: {secretKeyRef: {name: {{ .Values.stateSecret | default $engines }}, key: url}}
- {name: HARMONYWATCH_OPS__HOST, value: 0.0.0.0}
- {name: HARMONYWATCH_OPS__PORT, value: "9470"}
- {name: AWS_ENDPOINT_URL, value: {{ .Values.s3.endpoint | default (printf "http://%s-s3:7070" .Release.Name) | quote }}}
{{- if not .Values.s3.endpoint }}
- {name: AWS_ALLOW_HTTP, value: "true"}
{{- end }}
- {name: AWS_REGION, value: {{ .Values.s3.region | quote }}}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ .Values.s3.secret | default $engines }}, key: access}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ .Values.s3.secret | default $engines }}, key: secret}}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}
