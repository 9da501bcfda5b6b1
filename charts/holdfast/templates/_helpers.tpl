{{/* Labels of everything. */}}
{{- define "holdfast.labels" -}}
app.kubernetes.io/name: holdfast
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Labels by which a part's pods are found: never changed by an upgrade. Takes the part's name and the root. */}}
{{- define "holdfast.selector" -}}
app.kubernetes.io/name: holdfast
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .part }}
{{- end -}}

{{/* Name of an object: holdfast-PART, or RELEASE-PART where the release has another name. */}}
{{- define "holdfast.name" -}}
{{- printf "%s-%s" .root.Release.Name .part | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "holdfast.image" -}}
{{- $image := .image -}}
{{- with .root.Values.registry }}{{ . }}/{{ end }}{{ $image.repository }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{/*
A certificate of a part's Service and the authority that has signed it, base64: that of its Secret where there is one, since its process
renews it. The authority's own key is not kept: it signs this certificate alone. Takes the root, the part's name and how many days.
*/}}
{{- define "holdfast.certificate" -}}
{{- $name := include "holdfast.name" . -}}
{{- $namespace := .root.Release.Namespace -}}
{{- with lookup "v1" "Secret" $namespace $name -}}
{{- pick .data "ca.crt" "tls.crt" "tls.key" | toYaml -}}
{{- else -}}
{{- $service := printf "%s.%s.svc" $name $namespace -}}
{{- $ca := genCA $name (int .days) -}}
{{- $made := genSignedCert $service nil (list $service (printf "%s.cluster.local" $service)) (int .days) $ca -}}
{{- dict "ca.crt" (b64enc $ca.Cert) "tls.crt" (b64enc $made.Cert) "tls.key" (b64enc $made.Key) | toYaml -}}
{{- end -}}
{{- end -}}

{{/* … and the Secret of it; takes the root, the part's name and the certificate. */}}
{{- define "holdfast.certificateSecret" -}}
apiVersion: v1
kind: Secret
type: kubernetes.io/tls
metadata:
  name: {{ include "holdfast.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "holdfast.labels" .root | nindent 4 }}
data:
  {{- toYaml .certificate | nindent 2 }}
{{- end -}}

{{/* What a webhook's file says of its renewal; takes the root, the part's name, how many days, kind and name of the configuration. */}}
{{- define "holdfast.renewal" -}}
{{- $name := include "holdfast.name" . -}}
{{- $service := printf "%s.%s.svc" $name .root.Release.Namespace -}}
renewal:
  namespace: {{ .root.Release.Namespace }}
  secret: {{ $name }}
  kinds: {{ .kinds | toJson }}
  configuration: {{ .configuration }}
  names: [{{ $service }}, {{ $service }}.cluster.local]
  days: {{ .days }}
{{- end -}}

{{/* Of containers that need nothing: Pod Security restricted. */}}
{{- define "holdfast.restricted" -}}
allowPrivilegeEscalation: false
capabilities: { drop: [ALL] }
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end -}}
