{{- define "harmonywatch.labels" -}}
app.kubernetes.io/name: harmonywatch
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "harmonywatch.stream" -}}
{{- if .Values.streamUrl }}{{ .Values.streamUrl }}
{{- else if not .Values.engines }}{{ fail "streamUrl: kafka://HOST:PORT,... is needed without the chart's own engines" }}
{{- else -}}
kafka://{{ .Release.Name }}-kafka-0.{{ .Release.Name }}-kafka:9092,{{ .Release.Name }}-kafka-1.{{ .Release.Name }}-kafka:9092,{{ .Release.Name }}-kafka-2.{{ .Release.Name }}-kafka:9092
{{- end }}
{{- end -}}

{{- define "harmonywatch.environment" -}}
{{- $engines := ternary (printf "%s-engines" .Release.Name) "" .Values.engines -}}
{{- $s3 := .Values.s3.secret | default $engines -}}
{{- $endpoint := .Values.s3.endpoint | default (ternary (printf "http://%s-s3:7070" .Release.Name) "" .Values.engines) -}}
- {name: HARMONYWATCH_DATA, value: /data}
- {name: HARMONYWATCH_KEYS, value: /keys}
- {name: HARMONYWATCH_STREAM__URL, value: {{ include "harmonywatch.stream" . | quote }}}
- {name: HARMONYWATCH_LAKE, value: {{ .Values.lakeUrl | quote }}}
- name: HARMONYWATCH_STATE
  valueFrom: {secretKeyRef: {name: {{ required "stateSecret is needed without the chart's own engines" (.Values.stateSecret | default $engines) }}, key: url}}
- {name: HARMONYWATCH_OPS__HOST, value: 0.0.0.0}
- {name: HARMONYWATCH_OPS__PORT, value: "9470"}
- {name: AWS_REGION, value: {{ .Values.s3.region | quote }}}
{{- if $endpoint }}
- {name: AWS_ENDPOINT_URL, value: {{ $endpoint | quote }}}
{{- end }}
{{- if hasPrefix "http:" $endpoint }}
- {name: AWS_ALLOW_HTTP, value: "true"}
{{- end }}
{{- if $s3 }}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ $s3 }}, key: access}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ $s3 }}, key: secret}}
{{- end }}
{{- range $name, $value := .Values.settings }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}
