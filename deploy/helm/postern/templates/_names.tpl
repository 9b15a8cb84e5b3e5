{{- define "postern.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "postern.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "postern.labels" -}}
{{ include "postern.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- /* The settings that follow from other values; env says otherwise where it names one. */}}
{{- define "postern.env" -}}
POSTERN_STATUS_LISTEN: "0.0.0.0:8007"
POSTERN_SHUTDOWN_DELAY: {{ .Values.drain.delay }}
POSTERN_SHUTDOWN_TIMEOUT: {{ .Values.drain.timeout }}
{{- if .Values.secretName }}
POSTERN_VAULT_FS_PREFIX: /run/secrets/postern
{{- end }}
{{- if .Values.tlsSecretName }}
POSTERN_SSL_CERT: /run/secrets/tls/tls.crt
POSTERN_SSL_CERT_KEY: /run/secrets/tls/tls.key
{{- end }}
{{- end }}

{{- /* A value as text. Whole numbers come as floats, and would be written 1e+06. */}}
{{- define "postern.text" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . | quote }}{{ else }}{{ . | quote }}{{ end }}
{{- end }}
