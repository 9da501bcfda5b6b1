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

{{/* {NAME: ADDRESS} of the nodes, as JSON. */}}
{{- define "holdfast.nodes" -}}
{{- $nodes := .Values.agent.nodes -}}
{{- if not $nodes -}}
{{- $nodes = dict -}}
{{- range (lookup "v1" "Node" "" "").items -}}
{{- $name := .metadata.name -}}
{{- range .status.addresses -}}
{{- if and (eq .type "InternalIP") (not (hasKey $nodes $name)) -}}
{{- $_ := set $nodes $name .address -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- range $name, $_ := $nodes -}}
{{- if not (regexMatch "^[a-z0-9-]{1,40}$" $name) -}}
{{- fail (printf "agent.nodes: expected names of 1-40 small letters, digits and dashes, got %q" $name) -}}
{{- end -}}
{{- end -}}
{{- toJson $nodes -}}
{{- end -}}

{{/* [IP]:PORT for IPv6 */}}
{{- define "holdfast.endpoint" -}}
{{- if contains ":" .address }}[{{ .address }}]:{{ .port }}{{ else }}{{ .address }}:{{ .port }}{{ end -}}
{{- end -}}
