{{- define "chaperone.labels" -}}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: chaperone
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* Labels of one part: (list $ "broker") */ -}}
{{- define "chaperone.part" -}}
{{ include "chaperone.labels" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "chaperone.selector" -}}
app.kubernetes.io/name: chaperone
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- /* Reference of an image: (list $ "gateway") */ -}}
{{- define "chaperone.image" -}}
{{- $root := index . 0 -}}
{{- index $root.Values.images (index . 1) | default (printf "chaperone/%s:%s" (index . 1) $root.Chart.AppVersion) -}}
{{- end }}

{{- /* What is never an agent's: where the cluster and Chaperone themselves run. By name, because anybody may set labels. */ -}}
{{- define "chaperone.namespaceSelector" -}}
namespaceSelector:
  matchExpressions:
    - key: kubernetes.io/metadata.name
      operator: NotIn
      values:
        {{- range concat (list "kube-system" "kube-node-lease" "kube-public" .Release.Namespace) .Values.exemptNamespaces | uniq }}
        - {{ . }}
        {{- end }}
{{- end }}

{{- /* Where and how a pod runs, up to its containers: (list $ "broker") */ -}}
{{- define "chaperone.pod" -}}
{{- $root := index . 0 -}}
serviceAccountName: chaperone-{{ index . 1 }}
automountServiceAccountToken: true
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- range $topology := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $topology }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "chaperone.selector" (index $ 1) | nindent 8 }}
  {{- end }}
{{- end }}

{{- define "chaperone.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  privileged: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{- /* The webhooks of one path: (dict "root" $ "path" "validate-pod" "sideEffects" "None" "present" caBundle, may be "");
       with "everywhere" true no namespace is exempt. */ -}}
{{- define "chaperone.webhook" -}}
name: {{ .path }}.chaperone.dev
admissionReviewVersions: [v1]
clientConfig:
  service:
    name: chaperone-operator
    namespace: {{ .root.Release.Namespace }}
    path: /{{ .path }}
    port: 443
  {{- with .present }}
  caBundle: {{ . }}
  {{- end }}
failurePolicy: Fail
timeoutSeconds: 5
sideEffects: {{ .sideEffects }}
matchPolicy: Equivalent
{{- if not .everywhere }}
{{ include "chaperone.namespaceSelector" .root }}
{{- end }}
{{- end }}

{{- /* The CA that the operator wrote into a registration, "" before it did: an upgrade must not take it out.
       (list kind) of a registration named chaperone; all of its webhooks have the same. */ -}}
{{- define "chaperone.presentCa" -}}
{{- $found := lookup "admissionregistration.k8s.io/v1" (index . 0) "" "chaperone" | default dict -}}
{{- $webhooks := get $found "webhooks" | default list -}}
{{- if $webhooks }}{{ dig "clientConfig" "caBundle" "" (first $webhooks) }}{{ end -}}
{{- end }}
